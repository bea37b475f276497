"""From encoded images to rows."""
