"""Documents of several sources to a prepared corpus, in memory that does not grow with the text."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, get_args
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from treering.corpus.documents import Document, as_source, is_hub, read_documents, source_bytes
from treering.corpus.duplicates import DUPLICATE_BYTES, HeldOutParagraphs, Index, Overlap, cut
from treering.corpus.mixing import Mix, choose, scatter, targets
from treering.corpus.packing import pack, write_blocks
from treering.corpus.prepared import (
    CALIBRATION,
    FORMAT_VERSION,
    MANIFEST,
    MANIFEST_SUM,
    ORDER,
    SPLIT_RULE,
    TRAIN,
    VALIDATION,
    Corpus,
    FileRecord,
    HeldOutRecord,
    Manifest,
    OverlapRecord,
    SourceRecord,
    TokenizerRecord,
    TrainRecord,
    document_line,
    manifest_sum,
)
from treering.corpus.source import EMBEDDED_PREFIX, HUB_PREFIX, Source, Split, split_of
from treering.corpus.spool import Spool, Texts, read_texts
from treering.corpus.streams import Receipt
from treering.corpus.tokenising import tokenise
from treering.errors import TreeringError
from treering.output import explain_full_disk, staged_directory
from treering.recipe import Schema, Seed

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID
    from transformers import PreTrainedTokenizerFast


class CorpusRecipe(Schema):
    """What ``treering data prepare --recipe`` reads: the arguments of `prepare`."""

    sources: list[Source] = Field(min_length=1, description="paths, or objects with the fields of a source")
    tokenizer: str = Field(description="directory or hub:NAME of the tokenizer")
    output: str = Field(description="directory of the prepared corpus")
    block_size: int = Field(default=512, description="tokens in a training block")
    validation: float = Field(default=0.05, description="share of the documents to hold out")
    calibration: float = Field(default=0.0, description="share of the documents to hold out for calibration")
    mix: Mix = Field(default="subsample", description="how weights are reached")
    seed: Seed = Field(default=0, description="of the order of documents")
    duplicate_bytes: int = Field(
        default=DUPLICATE_BYTES, ge=0, description="shortest paragraph cut out of training if held out; 0 cuts none"
    )


def prepare(
    sources: Sequence[Source | str | os.PathLike[str]],
    tokenizer: PreTrainedTokenizerFast,
    output: str | os.PathLike[str],
    *,
    block_size: int = 512,
    validation: float = 0.05,
    calibration: float = 0.0,
    mix: Mix = "subsample",
    seed: int = 0,
    duplicate_bytes: int = DUPLICATE_BYTES,
    console: Console | None = None,
) -> Corpus:
    """Hold documents out of sources, cut what repeats them, tokenise, mix, shuffle, pack; ``output`` appears when done.

    - **Split.** `split_of` decides by each document's id.
    - **Near-duplicates.** Out of training documents those paragraphs are cut that stand in a held-out document of
      any source; one that loses half of itself, or that equals a held-out document, is left out (see
      `treering.corpus.duplicates.cut`). Calibration documents are cut in the same way where they repeat validation
      documents, and these are kept as they are. The manifest counts all.
    - **Mix.** Without weights everything is read once. With weights (on all sources or on none) they are
      shares of the training tokens, reached by leaving out documents of rich sources (``subsample``) or by
      repeating documents of poor ones (``repeat``), to within half a document a source.
    - **Order.** Documents are shuffled across all sources by ``seed``. The same call gives the same bytes.
    - **Cost.** Disk, while it runs: the text that is not for validation (each source is read once, and what is held
      out is known only then) and 2 bytes a token (4 beyond 65,536 IDs); then these and 4 in the result. Memory:
      some tens of bytes a document and a held-out paragraph, nothing that grows with the training text's length.

    Args:
        validation: share of the documents to hold out, in [0, 1); 0 holds out nothing.
        calibration: share to hold out besides, for fitting what is then measured on the validation documents.
        duplicate_bytes: a paragraph of at least so many UTF-8 bytes (normalised) is cut if it is held out; shorter
            ones are phrases of the language. 0 keeps all, exact repeats of held-out documents too.
        console: where progress is shown, if it is a terminal.

    Raises:
        TreeringError: a source cannot be read (see `read_documents`), the tokenizer has no end-of-text
            token, one side has no document or not one block, shares, names or weights do not fit, the output
            exists, or the disk is full.
    """
    from treering.tokenizer import identity, separator

    checked = [as_source(source) for source in sources]
    _check(checked, block_size, duplicate_bytes)
    _check_shares(validation, calibration)
    start, output = separator(tokenizer), Path(output)
    shares: dict[Split, float] = {"validation": validation, "calibration": calibration}
    with explain_full_disk(output.parent), staged_directory(output) as staging:
        with Spool(staging / "tokens.spool", len(tokenizer)) as spool:
            with _progress(console) as report:
                held_out: dict[Split, HeldOutParagraphs] = {
                    "validation": HeldOutParagraphs(measured=True),
                    "calibration": HeldOutParagraphs(measured=False),
                }
                readings = _read(checked, shares, staging, held_out, report)
                overlap, digests = _Cutter(tokenizer, readings, duplicate_bytes, report).cut(staging, held_out, spool)
            _require_documents(readings, shares)
            trainable, tokens = _ranges(readings), spool.lengths() + np.uint32(1)  # with the separator
            chosen = _choose(checked, trainable, tokens, mix, seed)
            selection = np.concatenate(chosen)
            total = _sum(tokens[selection])
            _require_blocks(total, _side(readings, "validation").tokens, block_size, validation)
            order = selection[scatter(len(selection), seed)]
            blocks, digest = write_blocks(staging / TRAIN, pack(spool.read(order), block_size, start), block_size)
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            sources=[
                _source_record(reading, tokens[used], total) for reading, used in zip(readings, chosen, strict=True)
            ],
            tokenizer=TokenizerRecord(
                identity=identity(tokenizer),
                vocab_size=len(tokenizer),
                separator=str(tokenizer.eos_token),
                separator_id=start,
            ),
            block_size=block_size,
            validation_share=validation,
            calibration_share=calibration,
            mix=mix,
            seed=seed,
            split_rule=SPLIT_RULE,
            order=ORDER,
            train=TrainRecord(
                documents=len(selection),
                tokens=blocks * block_size,
                blocks=blocks,
                dropped_tokens=total - blocks * block_size,
                sha256=digest,
            ),
            validation=_held_out_record(_side(readings, "validation"), digests["validation"]),
            calibration=_held_out_record(_side(readings, "calibration"), digests["calibration"]),
            duplicate_bytes=duplicate_bytes,
            overlap=OverlapRecord(paragraph_bytes=overlap.paragraph_bytes, before=overlap.before, after=overlap.after),
        )
        content = (manifest.model_dump_json(indent=2) + "\n").encode()
        (staging / MANIFEST).write_bytes(content)
        (staging / MANIFEST_SUM).write_bytes(manifest_sum(content))
    return Corpus.load(output, console)


# ---------------------------------------------------------------------------------------------- checks


def _check(sources: list[Source], block_size: int, duplicate_bytes: int) -> None:
    if not sources:
        raise TreeringError("There is nothing to prepare: name at least one source.")
    if block_size < 2:
        raise TreeringError(f"block_size is {block_size}; a block needs at least 2 tokens.")
    if duplicate_bytes < 0:
        raise TreeringError(f"duplicate_bytes is {duplicate_bytes}; it is a length in bytes, or 0 to cut nothing.")
    twice = [name for name, count in Counter(source.name for source in sources).items() if count > 1]
    if twice:
        raise TreeringError(
            f"Several sources are named {', '.join(twice)}. "
            "Give each a name of its own: NAME=PATH on the command line, name: in a recipe."
        )
    unweighted = [source.name for source in sources if source.weight is None]
    if 0 < len(unweighted) < len(sources):
        raise TreeringError(
            f"Some sources have a weight, but {', '.join(unweighted)} has none. Weigh all of them, or none."
        )


def _check_shares(validation: float, calibration: float) -> None:
    for name, share in (("validation", validation), ("calibration", calibration)):
        if not 0 <= share < 1:
            raise TreeringError(f"{name} is {share}; it is a share of the documents, from 0 to less than 1.")
    if validation + calibration >= 1:
        raise TreeringError(
            f"validation ({validation}) and calibration ({calibration}) are shares of the same documents: together "
            "they must be less than 1, or nothing is left to train on."
        )


def _require_documents(readings: list[_Reading], shares: Mapping[Split, float]) -> None:
    for reading in readings:
        if not reading.documents:
            raise TreeringError(f"No document of {reading.source.name} belongs to part {reading.source.part}.")
        train = reading.sides["train"]
        if not train.documents and (reading.source.weight or not _side(readings, "train").documents):
            repeats = f" or repeat held-out ones ({train.left_out})" if train.left_out else ""
            raise TreeringError(
                f"All {reading.documents} documents of {reading.source.name} are held out{repeats}: none is left "
                "to train on. Give more text or smaller documents (--document line), or lower the shares held out "
                "(--validation, --calibration)."
            )
    for split, share in shares.items():
        side = _side(readings, split)
        if share and not side.documents:
            documents = sum(reading.documents for reading in readings)
            purpose = "measure" if split == "validation" else "fit"
            repeats = f" ({side.left_out} would be, but repeat validation documents)" if side.left_out else ""
            raise TreeringError(
                f"None of the {documents} documents is held out at --{split} {share:g}{repeats}: there would be "
                f"nothing to {purpose} on. Give more text or smaller documents (--document paragraph or line), a "
                f"larger --{split}, or --{split} 0 to do without."
            )


def _require_blocks(train: int, held_out: int, block_size: int, validation: float) -> None:
    remedy = "Give more text or a smaller --block-size"
    if train < block_size:
        raise TreeringError(
            f"The training documents have {train:,} tokens, less than one block of {block_size}. {remedy}."
        )
    if validation and held_out < block_size:
        raise TreeringError(
            f"The held-out documents have {held_out:,} tokens, less than one block of {block_size}. "
            f"{remedy}, or a larger --validation."
        )


# ---------------------------------------------------------------------------------------------- reading


@dataclass
class _Side:
    """One source's documents on one side of the split: as they were read, and what was kept of them when cut."""

    read_documents: int = 0
    read_bytes: int = 0
    documents: int = 0
    text_bytes: int = 0
    tokens: int = 0  # with separators
    cut_paragraphs: int = 0  # out of documents that were kept

    @property
    def left_out(self) -> int:
        return self.read_documents - self.documents

    @property
    def cut_bytes(self) -> int:
        return self.read_bytes - self.text_bytes


@dataclass
class _Reading:
    source: Source
    receipt: Receipt = field(default_factory=Receipt)
    sides: dict[Split, _Side] = field(default_factory=lambda: {split: _Side() for split in get_args(Split)})

    @property
    def documents(self) -> int:
        return sum(side.read_documents for side in self.sides.values())

    @property
    def text_bytes(self) -> int:
        return sum(side.read_bytes for side in self.sides.values())


def _side(readings: list[_Reading], split: Split) -> _Side:
    """The totals of all sources."""
    sides = [asdict(reading.sides[split]) for reading in readings]
    return _Side(**{name: sum(side[name] for side in sides) for name in asdict(_Side())})


def _texts(staging: Path, split: Split) -> Path:
    """Where the texts of a side lie until they are cut; validation documents stay as they are."""
    return staging / (VALIDATION if split == "validation" else f"{split}.spool")


def _read(
    sources: list[Source],
    shares: Mapping[Split, float],
    staging: Path,
    held_out: Mapping[Split, HeldOutParagraphs],
    report: _Report,
) -> list[_Reading]:
    """Write each document of the sources to its side of the split; of those outside a part, note what is held out."""

    def split(document: Document) -> Split:
        return split_of(document.id, shares["validation"], shares["calibration"])

    def outside(document: Document) -> None:
        if split(document) != "train":
            held_out[split(document)].add(document.text)

    readings = [_Reading(source) for source in sources]
    with ExitStack() as stack:
        texts = {side: stack.enter_context(Texts(_texts(staging, side))) for side in get_args(Split)}
        for reading in readings:
            total = source_bytes(reading.source)
            for document in read_documents(reading.source, receipt=reading.receipt, outside=outside):
                where = split(document)
                side = reading.sides[where]
                side.read_documents += 1
                side.read_bytes += len(document.text.encode("utf-8"))
                texts[where].append(document, reading.source.name)
                report(reading.source.name, reading.receipt.bytes_read, total, reading.documents)
    return readings


# ---------------------------------------------------------------------------------------------- cutting


@dataclass(frozen=True)
class _Cutter:
    tokenizer: PreTrainedTokenizerFast
    readings: list[_Reading]
    duplicate_bytes: int
    report: _Report

    def cut(
        self, staging: Path, held_out: Mapping[Split, HeldOutParagraphs], spool: Spool
    ) -> tuple[Overlap, dict[Split, str]]:
        """Cut each side by what is held out from it: calibration into its file, training as tokens into the spool.

        Returns what training documents share with validation documents, and each held-out side's SHA-256.
        """
        digests = {split: hashlib.sha256() for split in held_out}

        def hold_out(split: Split, document: Document, source: str) -> None:
            held_out[split].add(document.text)
            digests[split].update(document_line(document.id, source, document.text))

        for source, document, _ in self._kept("validation", staging, Index()):
            hold_out("validation", document, source)
        with Texts(staging / CALIBRATION) as calibration:
            for source, document, _ in self._kept("calibration", staging, Index(held_out["validation"])):
                hold_out("calibration", document, source)
                calibration.append(document, source)
        index = Index(held_out["validation"], held_out["calibration"])
        overlap = Overlap(index)
        for _, _, ids in self._kept("train", staging, index, overlap):
            spool.append(ids)
        return overlap, {split: digest.hexdigest() for split, digest in digests.items()}

    def _kept(
        self, split: Split, staging: Path, index: Index, overlap: Overlap | None = None
    ) -> Iterator[tuple[str, Document, NDArray[np.int32]]]:
        """Documents of one side with their source's name, cut, and their tokens."""
        sides = {reading.source.name: reading.sides[split] for reading in self.readings}
        total = sum(side.read_bytes for side in sides.values())
        done = documents = tokens = 0

        def pieces(side: _Side, found: Iterable[tuple[str, Document]]) -> Iterator[Document]:
            nonlocal done
            for _, document in found:
                done += len(document.text.encode("utf-8"))
                piece = cut(document.text, index, self.duplicate_bytes)
                side.cut_paragraphs += piece.paragraphs
                if overlap is not None:
                    overlap.count(piece)
                if piece.text:
                    yield replace(document, text=piece.text)

        path = _texts(staging, split)
        for source, found in itertools.groupby(read_texts(path), key=itemgetter(0)):
            side = sides[source]
            for document, ids in tokenise(pieces(side, found), self.tokenizer):
                side.documents += 1
                side.text_bytes += len(document.text.encode("utf-8"))
                side.tokens += len(ids) + 1
                documents, tokens = documents + 1, tokens + len(ids)
                self.report(f"{split} tokens", done, total, documents, tokens)
                yield source, document, ids
        if split != "validation":
            path.unlink()  # before the blocks need the room


def _ranges(readings: list[_Reading]) -> list[NDArray[np.uint32]]:
    """Where each source's training documents are in the spool."""
    ends = np.cumsum([0, *(reading.sides["train"].documents for reading in readings)])
    return [np.arange(first, last, dtype=np.uint32) for first, last in itertools.pairwise(ends)]


# ---------------------------------------------------------------------------------------------- mixing


def _choose(
    sources: list[Source],
    trainable: list[NDArray[np.uint32]],
    tokens: NDArray[np.uint32],
    mix: Mix,
    seed: int,
) -> list[NDArray[np.uint32]]:
    weights = [source.weight for source in sources if source.weight is not None]
    if not weights:
        return trainable
    wanted = targets([_sum(tokens[able]) for able in trainable], weights, mix)
    return [
        able[choose(tokens[able], target, seed * len(sources) + index + 1)]
        for index, (able, target) in enumerate(zip(trainable, wanted, strict=True))
    ]


def _sum(counts: NDArray[np.integer]) -> int:
    return int(counts.sum(dtype=np.int64))


# -------------------------------------------------------------------------------------------- manifest


def _source_record(reading: _Reading, used: NDArray[np.uint32], total: int) -> SourceRecord:
    """``used`` are the tokens of the documents that were chosen, of ``total`` in the whole mix."""
    train, validation, calibration = (reading.sides[split] for split in ("train", "validation", "calibration"))
    return SourceRecord(
        name=reading.source.name,
        source=without_machine(reading.source),
        files=[FileRecord(**asdict(file)) for file in reading.receipt.files],
        documents=reading.documents,
        empty_documents=reading.receipt.empty_documents,
        text_bytes=reading.text_bytes,
        tokens=train.tokens + validation.tokens + calibration.tokens,
        train_documents=train.documents,
        train_tokens=train.tokens,
        train_bytes=train.text_bytes,
        validation_documents=validation.documents,
        validation_tokens=validation.tokens,
        calibration_documents=calibration.documents,
        calibration_tokens=calibration.tokens,
        cut_paragraphs=train.cut_paragraphs,
        cut_bytes=train.cut_bytes,
        repeats_of_held_out=train.left_out,
        calibration_cut_paragraphs=calibration.cut_paragraphs,
        calibration_cut_bytes=calibration.cut_bytes,
        calibration_repeats=calibration.left_out,
        used_documents=len(used),
        used_tokens=_sum(used),
        share=round(_sum(used) / total, 6),
    )


def _held_out_record(side: _Side, digest: str) -> HeldOutRecord:
    return HeldOutRecord(documents=side.documents, tokens=side.tokens, text_bytes=side.text_bytes, sha256=digest)


def without_machine(source: Source) -> Source:
    """The source with the last part of its path only, and a URL without what may be secret in it."""
    path, plain = source.path, source.path.removeprefix(HUB_PREFIX)
    if "://" in path:
        url = urlsplit(path)
        of_machine = url.scheme in ("file", "local") or "::" in path  # fsspec chains protocols by ::
        path = Path(url.path).name if of_machine else f"{url.scheme}://{url.hostname or ''}{url.path}"
    elif Path(plain).exists() or not (is_hub(source) or path.startswith(EMBEDDED_PREFIX)):
        path = Path(plain).absolute().name
    return source.model_copy(update={"path": path})


# -------------------------------------------------------------------------------------------- progress


class _Report(Protocol):
    def __call__(self, task: str, done: int, total: int | None, documents: int, tokens: int = 0) -> None:
        """Show how many bytes of a task are done."""


@contextmanager
def _progress(console: Console | None) -> Iterator[_Report]:
    """A function to call after each document; on a terminal it moves its task's line."""
    if console is None or not console.is_terminal:
        yield lambda task, done, total, documents, tokens=0: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    bars: dict[str, TaskID] = {}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[documents]:,} documents  {task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:

        def report(task: str, done: int, total: int | None, documents: int, tokens: int = 0) -> None:
            if task not in bars:
                bars[task] = progress.add_task(task, total=total, documents=0, rate="")
            seconds = progress.tasks[bars[task]].elapsed or 1
            rate = f"{tokens / seconds:,.0f} tokens/s" if tokens else ""
            progress.update(bars[task], completed=done, documents=documents, rate=rate)

        yield report
