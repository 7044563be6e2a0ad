"""A prepared corpus: packed training blocks, whole held-out documents, and the manifest of all."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, ValidationError

from treering.corpus.arrow import damaged, read_batches
from treering.corpus.mixing import Mix
from treering.corpus.packing import Blocks
from treering.corpus.source import Source
from treering.errors import TreeringError
from treering.reading import MOST_JSON, inside, printable
from treering.recipe import Schema

if TYPE_CHECKING:
    from datasets import Dataset
    from rich.console import Console
    from transformers import PreTrainedTokenizerFast

FORMAT_VERSION = 1
MANIFEST, TRAIN, VALIDATION, CALIBRATION = "manifest.json", "train.arrow", "validation.arrow", "calibration.arrow"
MANIFEST_SUM = "manifest.sha256"
SPLIT_RULE = (
    "validation if the first 48 bits of SHA-256('treering validation' NUL id), as a fraction of 2^48, are "
    "below the validation share; else calibration if they are below the sum of both shares; else training; "
    "id = the document's own, or the first 128 bits of SHA-256(text) in hex"
)
ORDER = "documents of the mix sorted by SplitMix64 of position and seed; </s> before each; cut into blocks"
_LONG = 2**30  # bytes of a file from which its reading is shown

Count = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(ge=0, le=1)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class FileRecord(Schema):
    """A file as it lay on the disk, compressed or not."""

    name: str
    bytes: Count
    sha256: Digest


class SourceRecord(Schema):
    """What a source held and what the model reads of it. Tokens include one separator per document.

    ``documents`` and ``text_bytes`` are as read; the tokens, and the documents of each side, are of what was kept when
    paragraphs of held-out documents had been cut out of the others. ``cut_paragraphs`` were cut out of the
    ``train_documents``, ``repeats_of_held_out`` training documents were left out, and ``cut_bytes`` were lost by both.
    The same of calibration documents, where they repeated validation documents.
    """

    name: str
    source: Source
    files: list[FileRecord]
    documents: Count
    empty_documents: Count
    text_bytes: Count
    tokens: Count
    train_documents: Count
    train_tokens: Count
    validation_documents: Count
    validation_tokens: Count
    calibration_documents: Count = 0
    calibration_tokens: Count = 0
    train_bytes: Count = 0
    cut_paragraphs: Count = 0
    cut_bytes: Count = 0
    repeats_of_held_out: Count
    calibration_cut_paragraphs: Count = 0
    calibration_cut_bytes: Count = 0
    calibration_repeats: Count = 0
    used_documents: Count
    used_tokens: Count
    share: Share

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of the documents that were kept, for each of their tokens without separators."""
        kept = self.train_documents + self.validation_documents + self.calibration_documents
        return (self.text_bytes - self.cut_bytes - self.calibration_cut_bytes) / max(self.tokens - kept, 1)

    @property
    def passes(self) -> float:
        """How often the source's training tokens are read in one epoch of the mix."""
        return self.used_tokens / self.train_tokens if self.train_tokens else 0.0


class TokenizerRecord(Schema):
    """The tokenizer the IDs belong to."""

    identity: Digest
    vocab_size: int = Field(ge=1, le=2**31)
    separator: str
    separator_id: Count


class TrainRecord(Schema):
    """Totals of ``train.arrow``; ``sha256`` is over its tokens as little-endian 32-bit integers."""

    documents: Count
    tokens: Count
    blocks: Count
    dropped_tokens: Count
    sha256: Digest


class HeldOutRecord(Schema):
    """Totals of ``validation.arrow`` or ``calibration.arrow``; ``tokens`` include one separator per document.

    ``sha256`` is over the lines that `document_line` makes of its rows; an earlier version did not write it.
    """

    documents: Count
    tokens: Count
    text_bytes: Count
    sha256: Digest | None = None


class OverlapRecord(Schema):
    """How much of the validation documents stands in training documents too, paragraph by paragraph of any length.

    ``paragraph_bytes`` have the validation documents in all (those outside a source's part, too); ``before`` of them
    stood in training documents as these were read, ``after`` still do now that they are cut.
    """

    paragraph_bytes: Count
    before: Count
    after: Count


class Manifest(Schema):
    """Everything that says which tokens a model has read.

    One written before there was calibration has none; one written before near-duplicates were looked for has no
    ``overlap``, and only documents that equal a held-out one were left out of training.
    """

    format_version: int
    sources: list[SourceRecord]
    tokenizer: TokenizerRecord
    block_size: int = Field(ge=2, lt=2**31)
    validation_share: Share
    calibration_share: Share = 0.0
    mix: Mix
    seed: int
    split_rule: str
    order: str
    train: TrainRecord
    validation: HeldOutRecord
    calibration: HeldOutRecord = HeldOutRecord(documents=0, tokens=0, text_bytes=0)
    duplicate_bytes: Count = 0
    overlap: OverlapRecord | None = None


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus.

    Attributes:
        train: rows ``{"input_ids": …}`` of exactly ``manifest.block_size`` IDs, read from the disk when asked for.
        validation: whole held-out documents in memory, columns ``id``, ``source``, ``text``.
        calibration: more of them with the same columns, to fit small things on that are measured on ``validation``.
        manifest: where all come from.
        fingerprint: SHA-256 of the manifest, which holds the hash of the training tokens.
        directory: where it lies.
    """

    train: Blocks
    validation: Dataset
    calibration: Dataset
    manifest: Manifest
    fingerprint: str
    directory: Path

    @classmethod
    def load(cls, directory: str | os.PathLike[str], console: Console | None = None) -> Corpus:
        """Open a directory that `prepare` wrote, once everything in it is known to be what the manifest says.

        Args:
            console: where the reading of a large file is shown, if it is a terminal.

        Raises:
            TreeringError: it is not a prepared corpus, is of another format version, or is damaged.
        """
        directory = Path(directory)
        manifest, fingerprint = _read_manifest(directory)
        return cls(
            train=_blocks(directory, manifest, console),
            validation=_documents(directory, "validation", manifest, fingerprint),
            calibration=_documents(directory, "calibration", manifest, fingerprint),
            manifest=manifest,
            fingerprint=fingerprint,
            directory=directory,
        )


HeldOutSplit = Literal["validation", "calibration"]


def load_held_out(directory: str | os.PathLike[str], split: HeldOutSplit = "validation") -> Dataset:
    """The held-out documents alone, without reading the training blocks; columns ``id``, ``source``, ``text``.

    Raises:
        TreeringError: as `Corpus.load`.
    """
    directory = Path(directory)
    return _documents(directory, split, *_read_manifest(directory))


def load_manifest(directory: str | os.PathLike[str]) -> Manifest:
    """The manifest alone, without opening the data.

    Raises:
        TreeringError: the directory is not a prepared corpus, or is of another format version.
    """
    return _read_manifest(Path(directory))[0]


def require_match(corpus: Corpus, tokenizer: PreTrainedTokenizerFast) -> None:
    """Check that a corpus was cut with this tokenizer.

    Raises:
        TreeringError: it was not; names both identities.
    """
    from treering.tokenizer import identity

    theirs, ours = corpus.manifest.tokenizer.identity, identity(tokenizer)
    if theirs != ours:
        raise TreeringError(
            f"The corpus was prepared with the tokenizer {theirs}, and this is the tokenizer {ours}: the "
            "same IDs would mean other text. Prepare the corpus again with this tokenizer, or use the one "
            "it was made with."
        )


def document_line(identity: str, source: str, text: str) -> bytes:
    """A held-out document as its file's SHA-256 takes it: the three as a JSON array in UTF-8, and a line feed."""
    return json.dumps([identity, source, text], ensure_ascii=False).encode() + b"\n"


def _read_manifest(directory: Path) -> tuple[Manifest, str]:
    path = inside(directory, MANIFEST)
    try:
        with path.open("rb") as file:
            content = file.read(MOST_JSON + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise TreeringError(
            f"{directory} is not a prepared corpus: it has no {MANIFEST}. Make one with: "
            f"treering data prepare SOURCE … --tokenizer DIR -o {directory}"
        ) from None
    if len(content) > MOST_JSON:
        raise TreeringError(f"{path} is larger than {MOST_JSON >> 20} MiB, which no manifest is.")
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = printable(".".join(str(part) for part in first["loc"]))
        raise TreeringError(
            f"{path} cannot be read ({field}: {printable(first['msg'])}). Copy it again, or prepare the corpus again."
        ) from None
    if manifest.format_version != FORMAT_VERSION:
        raise TreeringError(
            f"{directory} has the corpus format {manifest.format_version}; this Treering reads "
            f"{FORMAT_VERSION}. Prepare it again."
        )
    fingerprint = hashlib.sha256(content).hexdigest()
    if directory.joinpath(MANIFEST_SUM).exists():  # an earlier version wrote none
        with inside(directory, MANIFEST_SUM).open("rb") as file:
            if file.read(len(content)) != manifest_sum(content):
                raise damaged(path, f"it does not have the SHA-256 that {MANIFEST_SUM} says")
    return manifest, fingerprint


def manifest_sum(content: bytes) -> bytes:
    """What ``manifest.sha256`` holds of a manifest, as ``sha256sum`` writes and checks it."""
    return f"{hashlib.sha256(content).hexdigest()}  {MANIFEST}\n".encode()


def _blocks(directory: Path, manifest: Manifest, console: Console | None) -> Blocks:
    from rich.console import Console
    from rich.progress import Progress

    path, known = inside(directory, TRAIN), manifest.train
    size = path.stat().st_size if path.exists() else 0
    with Progress(console=console or Console(quiet=True), transient=True, disable=size < _LONG) as progress:
        task = progress.add_task(f"checking {path}", total=size)
        vocab_size = manifest.tokenizer.vocab_size
        blocks = Blocks(path, manifest.block_size, vocab_size, lambda count: progress.advance(task, count))
    if len(blocks) != known.blocks:
        raise damaged(path, f"it has {len(blocks)} rows where the manifest says {known.blocks}")
    if blocks.sha256 != known.sha256:
        raise damaged(path, "its tokens do not have the SHA-256 that the manifest says")
    return blocks


def _documents(directory: Path, split: HeldOutSplit, manifest: Manifest, fingerprint: str) -> Dataset:
    import pyarrow as pa
    from datasets import Dataset
    from datasets.table import InMemoryTable

    known: HeldOutRecord = getattr(manifest, split)
    path = inside(directory, VALIDATION if split == "validation" else CALIBRATION)
    schema = pa.schema(dict.fromkeys(("id", "source", "text"), pa.string()))
    digest, text_bytes, batches = hashlib.sha256(), 0, []
    if known.documents or split == "validation":  # without any set apart, there may be no file
        for batch, _, _ in read_batches(path, schema):
            for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                digest.update(document_line(*row))
                text_bytes += len(row[-1].encode())
            batches.append(batch.replace_schema_metadata(None))
    table = pa.Table.from_batches(batches, schema)
    if (len(table), text_bytes) != (known.documents, known.text_bytes):
        raise damaged(path, f"it has {len(table)} rows where the manifest says {known.documents}, or another text")
    if known.sha256 and digest.hexdigest() != known.sha256:
        raise damaged(path, "its documents do not have the SHA-256 that the manifest says")
    return Dataset(InMemoryTable(table), fingerprint=f"{fingerprint[:32]}-{split}")
