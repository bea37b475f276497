"""Pure model definitions: linen modules that neither train nor load anything."""
