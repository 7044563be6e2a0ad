"""What each owner reads in a study of compositions, as prepared corpora, and what is held out from all of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedTokenizerFast

from treering.corpus import Document, Source, prepare, read_documents, split_of
from treering.corpus.duplicates import HeldOutParagraphs, Index, cut
from treering.corpus.prepared import document_line
from treering.errors import TreeringError
from treering.evaluation.owners import owner_of, share_of, shared_topics
from treering.evaluation.table import held_out_texts
from treering.output import write_file


class Cell(NamedTuple):
    """So many owners of each kind, who share so much of its topics; a single one shares nothing."""

    members: int
    overlap: float | None

    @property
    def name(self) -> str:
        """What its texts and measurements are called."""
        return f"{self.members}" if self.overlap is None else f"{self.members}-{self.overlap:g}"


WHOLE = Cell(1, None)


@dataclass(frozen=True)
class Apart:
    """Shares of the documents to measure on and to choose on, and how many of each text are measured; None: all."""

    validation: float
    calibration: float
    documents: int | None

    def split(self, document: Document) -> str:
        """The side that a document is on, whoever owns it."""
        return split_of(document.id, self.validation, self.calibration)


class OwnedTexts:
    """Documents in memory, and what is made of them in an output: JSON lines in ``texts``, ``corpora`` of them.

    Attributes:
        held_out: by name of kind or text from outside, the documents to measure on.

    Args:
        kinds: by name, what members read; ``outside``: what none of them reads.

    Raises:
        TreeringError: see ``treering.corpus.read_documents``.
    """

    def __init__(
        self,
        kinds: Mapping[str, Source],
        outside: Mapping[str, Source],
        apart: Apart,
        tokenizer: PreTrainedTokenizerFast,
        block_size: int,
        output: Path,
    ) -> None:
        self.kinds, self.outside, self.apart = list(kinds), list(outside), apart
        self.tokenizer, self.block_size, self.output = tokenizer, block_size, output
        self.documents = {name: list(read_documents(source)) for name, source in {**kinds, **outside}.items()}
        self.held_out = {
            name: [
                document.text for document in found if name in outside or self.apart.split(document) == "validation"
            ][: apart.documents]
            for name, found in self.documents.items()
        }
        self.train = self._without_repeats()
        self.sizes = {
            kind: {document.id: len(document.text.encode()) for document in found} for kind, found in self.train.items()
        }

    def _without_repeats(self) -> dict[str, list[Document]]:
        """The training documents of each kind, without paragraphs of what any text holds out.

        A corpus is cleared of its own when it is prepared; but members are measured on each other's texts, too.
        """
        apart = HeldOutParagraphs(measured=False)
        for kind in self.kinds:
            for document in self.documents[kind]:
                if self.apart.split(document) != "train":
                    apart.add(document.text)
        for name in self.outside:
            for text in self.held_out[name]:
                apart.add(text)
        index = Index(apart)
        return {
            kind: [
                Document(document.id, text)
                for document in self.documents[kind]
                if self.apart.split(document) == "train" and (text := cut(document.text, index).text)
            ]
            for kind in self.kinds
        }

    def digests(self, names: Sequence[str]) -> dict[str, str]:
        """By name, the SHA-256 of all documents."""
        found = {}
        for name in names:
            lines = (document_line(document.id, name, document.text) for document in self.documents[name])
            found[name] = hashlib.sha256(b"".join(lines)).hexdigest()
        return found

    def shared(self, cell: Cell) -> float | None:
        """The share of the texts whose topics a cell's owners share."""
        return None if cell.overlap is None else share_of(self.sizes, shared_topics(self.sizes, cell.overlap))

    def corpus(self, kind: str, cell: Cell = WHOLE, owner: int = 1) -> Path:
        """What an owner, from 1, has of a kind; with it, in every corpus, all that the kind holds out.

        Raises:
            TreeringError: that is nothing; see also ``treering.corpus.prepare``.
        """
        place = self.output / "corpora" / cell.name / f"{kind}-{owner}"
        return self._prepared(place, [Source(path=os.fspath(self._lines(kind, cell, owner)), name=kind)])

    def pooled(self) -> Path:
        """All texts in one corpus, of which as much is read of each kind."""
        return self.together("pooled", dict.fromkeys(self.kinds, (WHOLE, 1)))

    def together(self, name: str, parts: Mapping[str, tuple[Cell, int]]) -> Path:
        """What owners, from 1, have of several kinds, in one corpus of which as much is read of each."""
        sources = [
            Source(path=os.fspath(self._lines(kind, cell, owner)), name=kind, weight=1)
            for kind, (cell, owner) in parts.items()
        ]
        return self._prepared(self.output / "corpora" / name, sources)

    def calibration(self, kind: str) -> list[str]:
        """The documents of a kind to choose on."""
        return held_out_texts([self.corpus(kind)], "calibration")[kind]

    def _lines(self, kind: str, cell: Cell, owner: int) -> Path:
        path = self.output / "texts" / cell.name / f"{kind}-{owner}.jsonl"
        if not path.exists():
            owners = owner_of(self.sizes, cell.members, cell.overlap or 0)
            own = [document for document in self.train[kind] if owners[document.id] == owner - 1]
            if not own:
                raise TreeringError(
                    f"Of {cell.members} owners that share {cell.overlap or 0:.0%} of the topics, one would have no "
                    f"page of {kind} to train on. Give fewer members, more overlap, or more text."
                )
            own += [document for document in self.documents[kind] if self.apart.split(document) != "train"]
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = (json.dumps({"id": document.id, "text": document.text}) + "\n" for document in own)
            write_file(path, "".join(rows))
        return path

    def _prepared(self, place: Path, sources: Sequence[Source]) -> Path:
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            prepare(
                sources,
                self.tokenizer,
                place,
                block_size=self.block_size,
                validation=self.apart.validation,
                calibration=self.apart.calibration,
                mix="repeat",
            )
        return place
