"""The columns of the evaluation's files."""

from __future__ import annotations

# The columns that name an (image, class) pair.
PAIR = ["image_id", "class_name"]
# Where the facts about a file are in its schema.
METADATA_KEY = b"ibsgl"
