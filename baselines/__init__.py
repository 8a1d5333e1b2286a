"""The paper's seven competitors and SISE, one file each. They are found through the group ``ibsgl.attributions``."""
