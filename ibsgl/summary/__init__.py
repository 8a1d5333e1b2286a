"""What a whole run found, from its records on disk: headline values, a short note, and one page.

The parent run in MLflow shows them. Everything is read from files that the run has written, so nothing here computes a value.
"""

from ibsgl.summary.note import note
from ibsgl.summary.page import page
from ibsgl.summary.results import Result, headline, results

__all__ = ["Result", "headline", "note", "page", "results"]
