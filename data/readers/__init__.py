"""Readers: from a data set on disk to samples."""
