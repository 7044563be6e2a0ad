"""One Python file out of several, for readers and machines that do not have the package."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.resources import files
from itertools import groupby
from typing import NamedTuple


class _Module(NamedTuple):
    """A module's docstring as it stands there, its import statements, and what follows them."""

    told: str
    imports: list[ast.Import | ast.ImportFrom]
    body: str


@lru_cache
def inlined(module: str) -> str:
    """The source of a module, as ``treering.composition.rules``, followed by that of the modules of Treering in it.

    What is left to import is not Treering's. No two of these modules may have something of one name.
    """
    first, *others = _with_imported(module, set())
    parts = [first.told, _imports([first, *others]), first.body]
    return "\n\n".join([*parts, *(part for other in others for part in (other.told, other.body))])


def _with_imported(module: str, seen: set[str]) -> Iterator[_Module]:
    """A module and then those of Treering that it imports, each once."""
    seen.add(module)
    root, *path = module.split(".")
    source = files(root).joinpath("/".join(path) + ".py").read_text(encoding="utf-8")
    docstring, *rest = ast.parse(source).body
    imports = [node for node in rest if isinstance(node, ast.Import | ast.ImportFrom)]
    body = "\n".join(source.splitlines()[imports[-1].end_lineno :]).strip("\n")
    told = str(ast.get_source_segment(source, docstring))
    yield _Module(told, [node for node in imports if not _ours(node)], f"\n{body}\n")
    for other in filter(None, map(_ours, imports)):
        if other not in seen:
            yield from _with_imported(other, seen)


def _ours(node: ast.Import | ast.ImportFrom) -> str | None:
    """The module of Treering that names are imported from; None if they are others'."""
    home = getattr(node, "module", None) or ""
    return home if home.startswith("treering.") else None


def _imports(modules: Sequence[_Module]) -> str:
    """The import statements of several modules as one block: of ``__future__``, Python's own, and others'."""
    lines: set[str] = set()
    names: dict[str, set[str]] = {}
    for node in (node for module in modules for node in module.imports):
        if isinstance(node, ast.Import):
            lines.add(ast.unparse(node))
        else:
            names.setdefault(str(node.module), set()).update(ast.unparse(alias) for alias in node.names)
    lines |= {f"from {module} import {', '.join(sorted(own))}" for module, own in names.items()}
    return "\n\n".join(
        "\n".join(group) for _, group in groupby(sorted(lines, key=_order), lambda line: _order(line)[0])
    )


def _order(statement: str) -> tuple[int, bool, str]:
    """Where an import statement stands: its group, and in it ``import`` before ``from``."""
    word, module, *_ = statement.split()
    package = module.partition(".")[0]
    return (package != "__future__") + (package not in sys.stdlib_module_names), word == "from", module
