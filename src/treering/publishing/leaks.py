"""What would leave the house with a model beside the model: paths, secrets, documents."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from treering.inlining import inlined
from treering.reading import printable
from treering.registration import AUTO_MAP, CODE, LOADER

PARTS = (
    "README.md", "LICENSE*", "NOTICE*", "config.json", "generation_config.json", "*.safetensors",
    "*.safetensors.index.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja", LOADER, "substrate.json",
    "training.json", "history.json", "growth.json", "abilities.json", "growth.png", "adapter_config.json",
)  # fmt: skip
"""Files that a model consists of; what else lies beside it may be anybody's."""
FOLDERS = ("tokenizers",)
"""Of a composition whose experts have tokenizers that differ in more than their IDs."""
MOST_TEXT = 2**26
"""Bytes of a text file that is looked through."""

_SECRETS = {
    "a token of the Hugging Face hub": r"\bhf_[A-Za-z0-9]{30,}\b",
    "a key of OpenAI or Anthropic": r"\bsk-(?:ant-|proj-)?[A-Za-z0-9_-]{24,}",
    "a token of GitHub": r"\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bgithub_pat_[A-Za-z0-9_]{40,}\b",
    "a key of AWS": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----",
    "a password in an address": r"\b[a-z][a-z0-9+.-]*://[^\s/:@\"']+:[^\s/@\"']+@",
}
_PATH = re.compile(
    r"^(?:file://)?(?:/|~[\w-]*/|\.\.?/|[A-Za-z]:[\\/]|\\\\[\w.-]+\\)\S*"  # from a root, a home, or here on
    r"|^[\w.-]+(?:/[\w.-]+){2,}$"  # of the hub there are two parts
)
"""A whole value that is a path. (``embedded:ru`` and ``hub:NAME`` are none.)"""
_ROOTS = "home|Users|root|mnt|media|srv|opt|var|tmp|private|data|work"
_INSIDE = re.compile(rf"(?<![\w/.:])(?:/(?:{_ROOTS})/|~/)[^\s\"'`)>,;]+")
"""A path in the middle of a text."""


@dataclass(frozen=True)
class Leak:
    """Something that would be given away.

    Attributes:
        where: the file, and in JSON the field.
        what: in words, with the beginning of what was found.
        kind: a ``path`` can be shortened to its last part; a ``secret`` or a ``file`` has to be taken away by hand.
    """

    where: str
    what: str
    kind: str


def told(found: Sequence[Leak]) -> str:
    """What would leak, a line for each."""
    return "\n".join(f"  {printable(leak.where)} {printable(leak.what)}" for leak in found)


def leaks(directory: str | os.PathLike[str]) -> list[Leak]:
    """What a directory would give away beside its model, file by file."""
    root = Path(directory)
    found: list[Leak] = []
    for path in files(root):
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            found.append(Leak(name, "is a link to another place", "file"))
        elif not _is_part(name):
            found.append(Leak(name, "is no part of a model; it may be a document", "file"))
        elif path.suffix != ".safetensors" and path.suffix != ".png":
            found += _in_text(path, name)
    return found


def files(root: Path) -> list[Path]:
    """All files of a directory and of the folders in it, without the stages of a grown model and hidden ones."""
    inner = [path for path in root.rglob("*") if path.is_file() or path.is_symlink()]
    return sorted(
        path
        for path in inner
        if not any(part.startswith(".") for part in path.relative_to(root).parts)
        and path.relative_to(root).parts[0] != "stages"
    )


def shorten(value: Any) -> Any:
    """A JSON value in which each path is its last part alone."""
    if isinstance(value, dict):
        return {key: shorten(own) for key, own in value.items()}
    if isinstance(value, list):
        return [shorten(own) for own in value]
    if not isinstance(value, str):
        return value
    return _last(value) if _PATH.match(value) else _INSIDE.sub(lambda found: _last(found.group()), value)


def _last(path: str) -> str:
    return (PureWindowsPath(path).name if "\\" in path else PurePosixPath(path).name) or "…"


def _is_part(name: str) -> bool:
    parts = PurePosixPath(name).parts
    if len(parts) > 1 and parts[0] not in FOLDERS:
        return False
    return any(fnmatch(parts[-1], pattern) for pattern in PARTS)


def _in_text(path: Path, name: str) -> Iterator[Leak]:
    if path.stat().st_size > MOST_TEXT:
        yield Leak(name, f"is a text of more than {MOST_TEXT >> 20} MiB, which was not looked through", "file")
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    for what, pattern in _SECRETS.items():
        if match := re.search(pattern, text):
            yield Leak(name, f"has what looks like {what}: {match.group()[:8]}…", "secret")
    if name == LOADER and text != inlined(CODE):
        yield Leak(name, "is not the code that this Treering writes; treering compose rule writes it anew", "file")
    if path.suffix == ".json" and not name.endswith(("tokenizer.json", "vocab.json", "added_tokens.json")):
        try:
            values = json.loads(text)
            if isinstance(values, dict) and values.get("auto_map") not in (None, AUTO_MAP):
                yield Leak(f"{name}: auto_map", "names code that is not Treering's", "file")
            yield from _paths(values, name, "")
        except (ValueError, RecursionError):
            yield Leak(name, "is no JSON", "file")
    elif path.suffix in (".md", ".py", ".jinja"):
        yield from (Leak(name, f"names the path {found}", "path") for found in _INSIDE.findall(text)[:3])


def _paths(value: Any, name: str, field: str) -> Iterator[Leak]:
    if isinstance(value, dict):
        for key, own in value.items():
            yield from _paths(own, name, f"{field}.{key}" if field else str(key))
    elif isinstance(value, list):
        for index, own in enumerate(value):
            yield from _paths(own, name, f"{field}[{index}]")
    elif isinstance(value, str) and (found := _PATH.match(value) or _INSIDE.search(value)):
        yield Leak(f"{name}: {field}", f"names the path {found.group()}", "path")
