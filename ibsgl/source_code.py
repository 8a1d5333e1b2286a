"""A digest of the code that a result depends on, so that an edit re-runs what it affects.

The digest covers a set of modules and all that they import from the same packages. Comments, docstrings and layout do not
count. No module is imported to compute it.
"""

from __future__ import annotations

import ast
import hashlib
import os
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path

# These modules write files, messages and records. They do not change the values of a result.
_NO_VALUES = frozenset(
    f"ibsgl.{name}" for name in ("data.download", "devices", "errors", "files", "provenance", "source_code")
)


def source_digest(*modules: str) -> str:
    """16 hexadecimal digits that change with the code of ``modules`` and of everything that they import.

    As a ``params`` value of a rule, the digest re-runs what an edit affects, and nothing when code is only reformatted.

    Args:
        modules: dotted names. A package stands for every module below it.

    Raises:
        ModuleNotFoundError: one of ``modules`` does not exist.
    """
    digest = hashlib.sha256()
    for name, file in imported_modules(*modules).items():
        digest.update(f"{name}={_parsed(file).digest}\n".encode())
    return digest.hexdigest()[:16]


def imported_modules(*modules: str) -> dict[str, str]:
    """Name and file of ``modules`` and of all that they import, directly or not, from the same top-level packages.

    Imports under ``if TYPE_CHECKING`` do not count. The ``__init__`` of a package counts where it is imported by name.

    Raises:
        ModuleNotFoundError: one of ``modules`` does not exist.
    """
    packages = {module.partition(".")[0] for module in modules}
    found: dict[str, str] = {}
    waiting: list[str] = []
    for module in modules:
        if not (files := _below(module)):
            raise ModuleNotFoundError(f"no module named {module!r} to take the digest of; check the name")
        waiting += files
    while waiting:
        module = waiting.pop()
        if module in found or module in _NO_VALUES or not (file := _file(module)):
            continue
        found[module] = file
        waiting += [name for name in _imports(module, file) if name.partition(".")[0] in packages]
    return dict(sorted(found.items()))


def _spec(module: str) -> ModuleSpec | None:
    top, *rest = module.split(".")
    spec, name = find_spec(top), top
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        name = f"{name}.{part}"
        # Unlike importlib.util.find_spec, the finder does not import the parent package.
        spec = PathFinder.find_spec(name, spec.submodule_search_locations)
    return spec


def _file(module: str) -> str | None:
    spec = _spec(module)
    # A folder without __init__.py has no code of its own.
    return spec.origin if spec is not None and spec.has_location else None


def _below(module: str) -> list[str]:
    """``module`` itself and, if it is a package, every module below it."""
    spec = _spec(module)
    if spec is None:
        return []
    names = [module]
    for folder in spec.submodule_search_locations or ():
        for file in sorted(Path(folder).rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            names.append(".".join([module, *parts]).removesuffix(".__init__"))
    return names


def _imports(module: str, file: str) -> Iterable[str]:
    """The modules that ``file`` imports, as absolute names."""
    return _resolve(module, file, _parsed(file))


@cache
def _resolve(module: str, file: str, code: _Code) -> list[str]:
    """The names of :func:`_imports`. After an edit of ``file``, ``code`` is another object, and they are looked up again."""
    found = []
    package = module if file.endswith("__init__.py") else module.rpartition(".")[0]
    for level, base, name in code.imports:
        if level:
            above = package.split(".")[: len(package.split(".")) - level + 1]
            base = ".".join([*above, *([base] if base else [])])
        # ``from package import name``: a module of the package, or something that its __init__ defines.
        found.append(f"{base}.{name}" if name and _file(f"{base}.{name}") else base)
    return found


class _Code:
    """The digest and the imports of one file. Comments, docstrings and layout do not count."""

    def __init__(self, content: bytes, file: str):
        if not file.endswith(".py"):
            self.digest, self.imports = hashlib.sha256(content).hexdigest(), []
            return
        tree = ast.parse(content, filename=file)
        self.imports = list(_import_statements(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[0] if node.body else None
                if (
                    isinstance(first, ast.Expr)
                    and isinstance(first.value, ast.Constant)
                    and isinstance(first.value.value, str)
                ):
                    del node.body[0]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Field":
                # The text of a config key is documentation, like a docstring.
                node.keywords = [keyword for keyword in node.keywords if keyword.arg != "description"]
        self.digest = hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _import_statements(node: ast.AST) -> Iterator[tuple[int, str, str]]:
    """(level, module, name) of every import below ``node``; ``name`` is empty for ``import module``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((0, alias.name, "") for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from ((child.level, child.module or "", alias.name) for alias in child.names)
        elif isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            yield from _import_statements(ast.Module(child.orelse, []))
        else:
            yield from _import_statements(child)


def _parsed(file: str) -> _Code:
    facts = os.stat(file)
    return _parse(file, facts.st_mtime_ns, facts.st_size)


@cache
def _parse(file: str, changed: int, size: int) -> _Code:
    """The code of ``file``. ``changed`` and ``size`` are arguments so that the cache notices an edit."""
    return _Code(Path(file).read_bytes(), file)
