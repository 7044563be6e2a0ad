"""A prepared corpus: packed training blocks, whole held-out documents, and the manifest of all."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from treering.corpus.mixing import Mix
from treering.corpus.source import Source
from treering.errors import TreeringError
from treering.recipe import Schema

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

FORMAT_VERSION = 1
MANIFEST, TRAIN, VALIDATION, CALIBRATION = "manifest.json", "train.arrow", "validation.arrow", "calibration.arrow"
SPLIT_RULE = (
    "validation if the first 48 bits of SHA-256('treering validation' NUL id), as a fraction of 2^48, are "
    "below the validation share; else calibration if they are below the sum of both shares; else training; "
    "id = the document's own, or the first 128 bits of SHA-256(text) in hex"
)
ORDER = "documents of the mix sorted by SplitMix64 of position and seed; </s> before each; cut into blocks"


class FileRecord(Schema):
    """A file as it lay on the disk, compressed or not."""

    name: str
    bytes: int
    sha256: str


class SourceRecord(Schema):
    """What a source held and what the model reads of it. Tokens include one separator per document."""

    name: str
    source: Source
    files: list[FileRecord]
    documents: int
    empty_documents: int
    text_bytes: int
    tokens: int
    train_documents: int
    train_tokens: int
    validation_documents: int
    validation_tokens: int
    calibration_documents: int = 0
    calibration_tokens: int = 0
    repeats_of_held_out: int
    used_documents: int
    used_tokens: int
    share: float

    @property
    def passes(self) -> float:
        """How often the source's training tokens are read in one epoch of the mix."""
        return self.used_tokens / self.train_tokens if self.train_tokens else 0.0


class TokenizerRecord(Schema):
    """The tokenizer the IDs belong to."""

    identity: str
    vocab_size: int
    separator: str
    separator_id: int


class TrainRecord(Schema):
    """Totals of ``train.arrow``; ``sha256`` is over its tokens as little-endian 32-bit integers."""

    documents: int
    tokens: int
    blocks: int
    dropped_tokens: int
    sha256: str


class HeldOutRecord(Schema):
    """Totals of ``validation.arrow`` or ``calibration.arrow``; ``tokens`` include one separator per document."""

    documents: int
    tokens: int
    text_bytes: int


class Manifest(Schema):
    """Everything that says which tokens a model has read; one written before there was calibration has none."""

    format_version: int
    sources: list[SourceRecord]
    tokenizer: TokenizerRecord
    block_size: int
    validation_share: float
    calibration_share: float = 0.0
    mix: Mix
    seed: int
    split_rule: str
    order: str
    train: TrainRecord
    validation: HeldOutRecord
    calibration: HeldOutRecord = HeldOutRecord(documents=0, tokens=0, text_bytes=0)


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus, memory-mapped.

    Attributes:
        train: column ``input_ids``, exactly ``manifest.block_size`` IDs a row.
        validation: whole held-out documents, columns ``id``, ``source``, ``text``.
        calibration: more of them with the same columns, to fit small things on that are measured on ``validation``.
        manifest: where all come from.
        fingerprint: SHA-256 of the manifest, which holds the hash of the training tokens.
    """

    train: Dataset
    validation: Dataset
    calibration: Dataset
    manifest: Manifest
    fingerprint: str

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Corpus:
        """Map a directory that `prepare` wrote.

        Raises:
            TreeringError: it is not a prepared corpus, is of another format version, or is damaged.
        """
        directory = Path(directory)
        manifest, fingerprint = _read_manifest(directory)
        train = _map(directory / TRAIN, manifest.train.blocks)
        validation = _map(directory / VALIDATION, manifest.validation.documents)
        set_apart = manifest.calibration.documents  # without any, there may be no file
        calibration = _map(directory / CALIBRATION, set_apart) if set_apart else validation.select(range(0))
        return cls(train, validation, calibration, manifest, fingerprint)


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


def _read_manifest(directory: Path) -> tuple[Manifest, str]:
    path = directory / MANIFEST
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise TreeringError(
            f"{directory} is not a prepared corpus: it has no {MANIFEST}. Make one with: "
            f"treering data prepare SOURCE … --tokenizer DIR -o {directory}"
        ) from None
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise TreeringError(f"{path} cannot be read ({field}: {first['msg']}). Prepare the corpus again.") from None
    if manifest.format_version != FORMAT_VERSION:
        raise TreeringError(
            f"{directory} has the corpus format {manifest.format_version}; this Treering reads "
            f"{FORMAT_VERSION}. Prepare it again."
        )
    return manifest, hashlib.sha256(content).hexdigest()


def _map(path: Path, rows: int) -> Dataset:
    import pyarrow as pa
    from datasets import Dataset

    try:
        dataset = Dataset.from_file(str(path))
    except (OSError, pa.ArrowException) as error:
        raise TreeringError(f"{path} is missing or damaged: {error}. Prepare the corpus again.") from None
    if len(dataset) != rows:
        raise TreeringError(f"{path} has {len(dataset)} rows where the manifest says {rows}. Prepare the corpus again.")
    return dataset
