"""gin, and gin only here: from files and bindings to a frozen experiment, and back."""
