"""Any phrase instead of a list of classes: where it is in an image, and whether it is there at all."""
