"""Models of images and text, one family a file."""
