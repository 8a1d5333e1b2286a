"""Data sets: the sources, the index of a data set, its images as tensors, and downloads."""
