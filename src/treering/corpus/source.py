"""What to read: a source of documents, and which of its documents belong to a part or are held out."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from treering.errors import TreeringError
from treering.reading import printable
from treering.recipe import Schema

EMBEDDED_PREFIX = "embedded:"
HUB_PREFIX = "hub:"
LANGUAGES = ("ru", "zh", "en")
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
FORMATS = {
    ".txt": "text",
    ".text": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}

Split = Literal["train", "validation", "calibration"]


class Source(Schema):
    """Where documents come from, and how to find them there.

    ``path`` is a file, a directory, a glob, a URL that fsspec opens, ``embedded:ru``, or a dataset on the
    Hugging Face hub (``hub:owner/name``; ``owner/name`` alone will do where no such path exists).
    """

    path: str = Field(description="file, directory, glob, URL, embedded:ru|zh|en, or hub:owner/name")
    name: str = Field(default="", description="label in tables and weights; by default from the file name")
    weight: float | None = Field(default=None, ge=1e-9, le=1e9, description="share of the training tokens of a mix")
    part: str | None = Field(default=None, description='"1/2": only documents whose hash falls in the first of two')
    limit: int | None = Field(default=None, gt=0, lt=2**63, description="stop after so many documents (of the part)")
    format: Literal["text", "jsonl", "json", "csv", "tsv", "parquet", "hub"] | None = Field(
        default=None, description="otherwise from the extension"
    )
    document: Literal["passage", "paragraph", "line", "file"] = Field(
        default="passage", description="what one document is in plain text"
    )
    text_field: str = Field(default="text", description="where the text is in JSON, CSV, Parquet, hub data")
    id_field: str = Field(default="id", description="field that identifies a document, where there is one")
    max_document_bytes: int = Field(default=64 * 2**20, gt=0, le=2**40, description="a longer one is an error")
    config: str | None = Field(default=None, description="configuration of a hub dataset")
    split: str = Field(default="train", description="split of a hub dataset")
    revision: str | None = Field(default=None, description="revision (commit, tag) of a hub dataset")
    streaming: bool = Field(default=True, description="read a hub dataset as it arrives, not after download")
    licence: str | None = Field(default=None, description="licence of the text, kept in the manifest")

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, values: Any) -> Any:
        if isinstance(values, str | os.PathLike):
            values = {"path": values}
        if not isinstance(values, dict) or not isinstance(values.get("path"), str | os.PathLike):
            return values
        values = values | {"path": os.fspath(values["path"])}
        values["name"] = values.get("name") or _default_name(values["path"])
        if values["path"].startswith(EMBEDDED_PREFIX):
            values["licence"] = values.get("licence") or "MPL-2.0"
        return values

    @field_validator("part")
    @classmethod
    def _part_is_a_fraction(cls, part: str | None) -> str | None:
        if part is not None:
            found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", part)
            if not found or not 1 <= int(found[1]) <= int(found[2]):
                raise PydanticCustomError("part", 'a part is written "1/2": the first of two')
        return part


def embedded(language: str) -> Path:
    """The help pages that come with Treering: ``ru``, ``zh`` or ``en`` (JSON lines, packed with xz).

    Raises:
        TreeringError: there is no such language.
    """
    if language not in LANGUAGES:
        raise TreeringError(f"There is no embedded text {language!r}; there are {', '.join(LANGUAGES)}.")
    name = f"libreoffice-help.{language}.jsonl.xz"
    return Path(str(resources.files("treering.corpus") / "embedded" / name))


def split_of(document_id: str, validation: float = 0.05, calibration: float = 0.0) -> Split:
    """The side a document is on, decided by the SHA-256 of its id and nothing else.

    So the same page is held out in every language, whatever is added to a corpus later. A larger
    ``validation`` holds out the same documents and more; ``calibration`` takes documents from training only.
    """
    position = _position(document_id, "treering validation")
    if position < validation:
        return "validation"
    return "calibration" if position < validation + calibration else "train"


def in_part(document_id: str, part: str | None) -> bool:
    """Whether a document belongs to a part such as ``"1/2"``; independent of `split_of`."""
    if part is None:
        return True
    number, count = (int(n) for n in part.split("/"))
    return int(_position(document_id, "treering part") * count) == number - 1


def text_id(text: str) -> str:
    """The id of a document that brings none: 128 bits of the SHA-256 of its text, in hex."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:32]


def missing_field(where: str, source: Source, fields: Iterable[str]) -> TreeringError:
    """The error for data that does not have the field with the text."""
    names = [printable(field, 80) for field in itertools.islice(fields, 50)]
    return TreeringError(
        f"{where}: there is no field {source.text_field!r}; the fields are: {', '.join(names) or 'none'}. "
        "Name the one that holds the text with text_field (--text-field)."
    )


def suffixes(path: str) -> tuple[str, str]:
    """The extension that tells the format and the one that tells the compression (or ""), in lower case."""
    name = PurePosixPath(path.replace("\\", "/")).name.lower()
    stem, compression = os.path.splitext(name)  # noqa: PTH122 - Path.suffix calls ".txt" a stem
    if compression not in COMPRESSIONS:
        stem, compression = name, ""
    return os.path.splitext(stem)[1], compression  # noqa: PTH122


def _position(document_id: str, salt: str) -> float:
    """A number in [0, 1) that looks random but is the document's own."""
    digest = hashlib.sha256(f"{salt}\0{document_id}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48  # 48 bits: exact in a float, so never rounded up to 1


def _default_name(path: str) -> str:
    for prefix in (EMBEDDED_PREFIX, HUB_PREFIX):
        path = path.removeprefix(prefix)
    parts = [p for p in PurePosixPath(path.replace("\\", "/")).parts if not set(p) & set("*?[")]
    name = parts[-1] if parts else path
    for suffix in (suffixes(name)[1], suffixes(name)[0] if suffixes(name)[0] in FORMATS else ""):
        name = name[: len(name) - len(suffix)] if suffix else name
    return name or path
