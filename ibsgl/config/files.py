"""Reading a config file. What PyYAML would take without a word, and what would hang it, is an error with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ibsgl.errors import ConfigError

# Values in a config, with those that an alias repeats. The largest config here has a few hundred.
_LARGEST = 100_000


class _Loader(yaml.SafeLoader):
    """Refuses a key that is in a mapping twice. PyYAML would take the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            # Keys that << merges may be there already: that is its use.
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                line = key.start_mark.line + 1
                if key.value in lines:
                    first = lines[key.value]
                    raise ConfigError(f"the key {key.value!r} is there twice, in lines {first} and {line}; keep one")
                lines[key.value] = line
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """The number of values of ``node``, each alias counted as what it repeats."""
    if id(node) not in known:
        # An alias inside its own value.
        known[id(node)] = _LARGEST + 1
        parts = node.value if isinstance(node, yaml.SequenceNode) else ()
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def read_file(path: Path) -> dict[str, Any]:
    """The keys and values of the YAML file ``path``.

    Raises:
        ConfigError: one line that names the file: it cannot be read, is no YAML, has a key twice, or is too large.
    """
    try:
        text = path.read_text(encoding="utf-8")
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None and _size(node, {}) > _LARGEST:
            raise ConfigError(f"its aliases make more than {_LARGEST} values of it; write out what is needed")
        values = None if node is None else loader.construct_document(node)
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"{path}: its values are nested too deeply") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except ValueError as error:
        # A date such as 2020-13-45.
        raise ConfigError(f"{path}: not readable as YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a config is a list of keys and values")
    return values
