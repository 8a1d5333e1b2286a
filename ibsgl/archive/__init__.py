"""A finished run as one file that lasts: packing it, and checking it years later.

The file is an RO-Crate (https://www.researchobject.org/ro-crate/1.1/) in a ZIP: the files of a run, and
``ro-crate-metadata.json``, which says what each file is and has its SHA-256.
"""

from ibsgl.archive.contents import KINDS, Member, collect
from ibsgl.archive.crate import write_archive
from ibsgl.archive.verify import compare, problems, read_facts, reproduce

__all__ = ["KINDS", "Member", "collect", "compare", "problems", "read_facts", "reproduce", "write_archive"]
