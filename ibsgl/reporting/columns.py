"""The columns of score files."""

from __future__ import annotations

# The first columns. The columns of the metrics and the two probabilities follow.
IDENTITY = ("model", "arch", "variant", "method", "label", "image_id", "class_name", "target")
PROBABILITIES = ("p_full", "p_kept")
# The columns that name a group of rows, and those that name a row of the group.
GROUP = ["model", "variant", "method"]
PAIR = ["image_id", "class_name"]
# Where the facts about a file are in its schema.
METADATA_KEY = b"ibsgl"
