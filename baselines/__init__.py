"""The paper's seven competitors, one file each; found through the entry-point group ``ibsgl.attributions``."""
