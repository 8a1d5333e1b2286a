"""The columns of the evaluation's files."""

from __future__ import annotations

# The first columns of the scores. The two probabilities and the columns of the metrics follow.
IDENTITY = (
    *("model", "arch", "variant", "scored_on", "replicate", "method", "label"),
    *("image_id", "class_name", "target"),
)
PROBABILITIES = ("p_full", "p_kept")
# The columns that name a group of scores, and those that name a row of the group.
GROUP = ["model", "variant", "scored_on", "method", "replicate"]
PAIR = ["image_id", "class_name"]
# Where the facts about a file are in its schema.
METADATA_KEY = b"ibsgl"
