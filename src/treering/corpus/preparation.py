"""Documents of several sources to a prepared corpus, in memory that does not grow with the text."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from treering.corpus.documents import as_source, is_hub, read_documents, source_bytes
from treering.corpus.mixing import Mix, choose, scatter, targets
from treering.corpus.packing import pack, write_blocks
from treering.corpus.prepared import (
    CALIBRATION,
    FORMAT_VERSION,
    MANIFEST,
    ORDER,
    SPLIT_RULE,
    TRAIN,
    VALIDATION,
    Corpus,
    FileRecord,
    HeldOutRecord,
    Manifest,
    SourceRecord,
    TokenizerRecord,
    TrainRecord,
)
from treering.corpus.source import EMBEDDED_PREFIX, HUB_PREFIX, Source, Split, split_of
from treering.corpus.spool import HeldOut, Spool
from treering.corpus.streams import Receipt
from treering.corpus.tokenising import tokenise
from treering.errors import TreeringError
from treering.output import explain_full_disk, staged_directory
from treering.recipe import Schema

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID
    from transformers import PreTrainedTokenizerFast


class CorpusRecipe(Schema):
    """What ``treering data prepare --recipe`` reads: the arguments of `prepare`."""

    sources: list[Source] = Field(min_length=1, description="paths, or objects with the fields of a source")
    tokenizer: str = Field(description="directory or hub name of the tokenizer")
    output: str = Field(description="directory of the prepared corpus")
    block_size: int = Field(default=512, description="tokens in a training block")
    validation: float = Field(default=0.05, description="share of the documents to hold out")
    calibration: float = Field(default=0.0, description="share of the documents to hold out for calibration")
    mix: Mix = Field(default="subsample", description="how weights are reached")
    seed: int = Field(default=0, ge=0, description="of the order of documents")


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
    console: Console | None = None,
) -> Corpus:
    """Tokenise sources, hold documents out, mix, shuffle and pack the rest; ``output`` appears when done.

    - **Split.** `split_of` decides by each document's id. Training documents with exactly the text of a
      held-out one are left out as well (and counted), whatever their id.
    - **Mix.** Without weights everything is read once. With weights (on all sources or on none) they are
      shares of the training tokens, reached by leaving out documents of rich sources (``subsample``) or by
      repeating documents of poor ones (``repeat``), to within half a document a source.
    - **Order.** Documents are shuffled across all sources by ``seed``. The same call gives the same bytes.
    - **Cost.** Disk, while it runs: 2 bytes a token (4 beyond 65,536 IDs) and 4 in the result. Memory: some
      tens of bytes a document, nothing that grows with their length.

    Args:
        validation: share of the documents to hold out, in [0, 1); 0 holds out nothing.
        calibration: share to hold out besides, for fitting what is then measured on the validation documents.
        console: where progress is shown, if it is a terminal.

    Raises:
        TreeringError: a source cannot be read (see `read_documents`), the tokenizer has no end-of-text
            token, one side has no document or not one block, shares, names or weights do not fit, the output
            exists, or the disk is full.
    """
    from treering.tokenizer import identity, separator

    checked = [as_source(source) for source in sources]
    _check(checked, block_size)
    _check_shares(validation, calibration)
    start, output = separator(tokenizer), Path(output)
    with explain_full_disk(output.parent), staged_directory(output) as staging:
        with (
            Spool(staging / "tokens.spool", len(tokenizer)) as spool,
            HeldOut(staging / VALIDATION) as validating,
            HeldOut(staging / CALIBRATION) as calibrating,
            _progress(console) as report,
        ):
            shares: dict[Split, float] = {"validation": validation, "calibration": calibration}
            held_out: dict[Split, HeldOut] = {"validation": validating, "calibration": calibrating}
            reader = _Reader(tokenizer, shares, spool, held_out, report)
            readings = [reader.read(source) for source in checked]
            tokens = spool.lengths() + np.uint32(1)  # with the separator
            repeats = spool.repeated(itertools.chain(validating.hashes, calibrating.hashes))
            trainable = [
                (reading.first + np.flatnonzero(~repeats[reading.range])).astype(np.uint32) for reading in readings
            ]
            _require_documents(readings, trainable, held_out, shares)
            chosen = _choose(checked, trainable, tokens, mix, seed)
            selection = np.concatenate(chosen)
            total = _sum(tokens[selection])
            _require_blocks(total, validating.tokens, block_size, validation)
            order = selection[scatter(len(selection), seed)]
            blocks, digest = write_blocks(staging / TRAIN, pack(spool.read(order), block_size, start), block_size)
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            sources=[
                SourceRecord(
                    name=reading.source.name,
                    source=_without_machine(reading.source),
                    files=[FileRecord(**asdict(file)) for file in reading.receipt.files],
                    documents=reading.documents,
                    empty_documents=reading.receipt.empty_documents,
                    text_bytes=reading.text_bytes,
                    tokens=_sum(tokens[reading.range]) + reading.held_out_tokens.total(),
                    train_documents=len(able),
                    train_tokens=_sum(tokens[able]),
                    validation_documents=reading.held_out["validation"],
                    validation_tokens=reading.held_out_tokens["validation"],
                    calibration_documents=reading.held_out["calibration"],
                    calibration_tokens=reading.held_out_tokens["calibration"],
                    repeats_of_held_out=int(repeats[reading.range].sum()),
                    used_documents=len(used),
                    used_tokens=_sum(tokens[used]),
                    share=round(_sum(tokens[used]) / total, 6),
                )
                for reading, able, used in zip(readings, trainable, chosen, strict=True)
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
            validation=_record(validating),
            calibration=_record(calibrating),
        )
        (staging / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return Corpus.load(output, console)


# ---------------------------------------------------------------------------------------------- checks


def _check(sources: list[Source], block_size: int) -> None:
    if not sources:
        raise TreeringError("There is nothing to prepare: name at least one source.")
    if block_size < 2:
        raise TreeringError(f"block_size is {block_size}; a block needs at least 2 tokens.")
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


def _require_documents(
    readings: list[_Reading],
    trainable: list[NDArray[np.uint32]],
    held_out: Mapping[Split, HeldOut],
    shares: Mapping[Split, float],
) -> None:
    for reading, able in zip(readings, trainable, strict=True):
        if not reading.documents:
            raise TreeringError(f"No document of {reading.source.name} belongs to part {reading.source.part}.")
        if not len(able) and (reading.source.weight or not any(map(len, trainable))):
            raise TreeringError(
                f"All {reading.documents} documents of {reading.source.name} are held out: none is left "
                "to train on. Give more text or smaller documents (--document line), or lower the shares held out "
                "(--validation, --calibration)."
            )
    for split, share in shares.items():
        if share and not held_out[split].documents:
            documents = sum(reading.documents for reading in readings)
            purpose = "measure" if split == "validation" else "fit"
            raise TreeringError(
                f"None of the {documents} documents is held out at --{split} {share:g}: there would be nothing to "
                f"{purpose} on. Give more text or smaller documents (--document paragraph or line), a larger "
                f"--{split}, or --{split} 0 to do without."
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
class _Reading:
    """One source as it was read; its training documents are ``range`` in the spool."""

    source: Source
    first: int
    last: int = 0
    documents: int = 0
    text_bytes: int = 0
    held_out: Counter[Split] = field(default_factory=Counter)
    held_out_tokens: Counter[Split] = field(default_factory=Counter)
    receipt: Receipt = field(default_factory=Receipt)

    @property
    def range(self) -> slice:
        return slice(self.first, self.last)


@dataclass(frozen=True)
class _Reader:
    tokenizer: PreTrainedTokenizerFast
    shares: Mapping[Split, float]
    spool: Spool
    held_out: Mapping[Split, HeldOut]
    report: Callable[[_Reading, int], None]

    def read(self, source: Source) -> _Reading:
        """Tokenise a source's documents into the spool, or among the held-out."""
        reading = _Reading(source, first=len(self.spool))
        documents = read_documents(source, receipt=reading.receipt)
        for document, ids in tokenise(documents, self.tokenizer):
            text = document.text.encode("utf-8")
            text_hash = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
            reading.documents += 1
            reading.text_bytes += len(text)
            split = split_of(document.id, self.shares["validation"], self.shares["calibration"])
            if split == "train":
                self.spool.append(ids, text_hash)
            else:
                reading.held_out[split] += 1
                reading.held_out_tokens[split] += len(ids) + 1
                self.held_out[split].append(document, source.name, text_hash, len(text), len(ids) + 1)
            self.report(reading, len(ids))
        reading.last = len(self.spool)
        return reading


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


def _record(held_out: HeldOut) -> HeldOutRecord:
    return HeldOutRecord(
        documents=held_out.documents,
        tokens=held_out.tokens,
        text_bytes=held_out.text_bytes,
        sha256=held_out.digest.hexdigest(),
    )


def _without_machine(source: Source) -> Source:
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


@contextmanager
def _progress(console: Console | None) -> Iterator[Callable[[_Reading, int], None]]:
    """A function to call after each document; on a terminal it moves each source's line."""
    if console is None or not console.is_terminal:
        yield lambda reading, tokens: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    bars: dict[str, TaskID] = {}
    tokens_of: Counter[str] = Counter()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[documents]:,} documents  {task.fields[rate]:,.0f} tokens/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:

        def report(reading: _Reading, tokens: int) -> None:
            name = reading.source.name
            if name not in bars:
                total = source_bytes(reading.source)
                bars[name] = progress.add_task(name, total=total, documents=0, rate=0.0)
            tokens_of[name] += tokens
            task = progress.tasks[bars[name]]
            progress.update(
                bars[name],
                completed=reading.receipt.bytes_read,
                documents=reading.documents,
                rate=tokens_of[name] / (task.elapsed or 1),
            )

        yield report
