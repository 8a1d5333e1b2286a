"""Data: the VOC-layout reader, the built-in shapes, and both as tensors."""
