"""Reading a config file. What PyYAML would take without a word, and what would hang a command, is an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from ibsgl.errors import ConfigError

# Values in a config, with those that an alias repeats. The largest config here has a few hundred.
_LARGEST = 100_000

# With this key Snakemake expands a config as a template of YTE, whose expressions are Python. It reads the config before the
# Snakefile, so a command of ibsgl is the only place to refuse it in time.
_TEMPLATE = "__use_yte__"


def _check_keys(node: yaml.MappingNode) -> None:
    """Refuse a key that is twice in a mapping: PyYAML would take the last one."""
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            continue
        if key.value in lines:
            raise ConfigError(f"the key {key.value!r} is there twice, in lines {lines[key.value]} and {line}; keep one")
        lines[key.value] = line


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """The number of values of ``node``, each alias counted as what it repeats."""
    if id(node) not in known:
        # An alias inside its own value.
        known[id(node)] = _LARGEST + 1
        parts = node.value if isinstance(node, yaml.SequenceNode) else ()
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
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
        if path.suffix == ".json":
            # JSON may be indented by tabs, which YAML forbids.
            values = json.loads(text)
        else:
            loader = yaml.SafeLoader(text)
            node = loader.get_single_node()
            if node is not None and _size(node, {}) > _LARGEST:
                raise ConfigError(
                    f"it has more than {_LARGEST} values, with what its aliases repeat; write out what is needed"
                )
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
    except (ValueError, LookupError) as error:
        # A date such as 2020-13-45, or !!bool x.
        raise ConfigError(f"{path}: not readable as {'JSON' if path.suffix == '.json' else 'YAML'}: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a config is a list of keys and values")
    if _TEMPLATE in values:
        raise ConfigError(
            f"{path}: Snakemake would execute a config with {_TEMPLATE} as a program; write the values themselves"
        )
    return values
