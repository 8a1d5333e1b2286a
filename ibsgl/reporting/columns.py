"""The columns of the evaluation's files."""

from __future__ import annotations

# The columns that name an (image, class) pair.
PAIR = ["image_id", "class_name"]
# Where the facts about a file are in its schema.
METADATA_KEY = b"ibsgl"
# Digits of the further metrics and of Tables 1–4 (in percent) in tables. Ranks are those of the rounded values.
METRIC_DIGITS, PERCENT_DIGITS = 4, 2
