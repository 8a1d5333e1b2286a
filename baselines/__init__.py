"""The seven methods that the paper compares with, one file each. They are found by the entry points ``ibsgl.attributions``."""
