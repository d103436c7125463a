"""Choosing settings for a model and data set on a few dozen images."""
