"""The paper's seven competitors, one file each. They are found through the entry-point group ``ibsgl.attributions``."""
