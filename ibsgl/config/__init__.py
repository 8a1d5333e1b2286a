"""The config: one schema, checked before any job starts, and the part of it that each step depends on."""

from ibsgl.config.checks import check, load, read
from ibsgl.config.files import read_file
from ibsgl.config.passes import record_passes
from ibsgl.config.schema import BUILT_IN_METHODS, SANITY_METHODS, Config, merge, parse
from ibsgl.errors import ConfigError

__all__ = [
    "BUILT_IN_METHODS",
    "SANITY_METHODS",
    "Config",
    "ConfigError",
    "check",
    "load",
    "merge",
    "parse",
    "read",
    "read_file",
    "record_passes",
]
