"""What one server has: its model, who reads for it, and who writes."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from treering.composition import require_drawable
from treering.serving.catalogue import Catalogue
from treering.serving.limits import Limits
from treering.serving.logprobs import Spelling
from treering.serving.reading import Reader
from treering.serving.turns import Turns


class Served:
    """The one model of a server, who reads for it, and the threads that write with it. Use as a context.

    Attributes:
        alone: a composition's expert by its name, where answers are drawn; else None.
        speculates: whether a composition's most credible expert leads, where that is possible.
    """

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        limits: Limits | None = None,
        drawn: bool = False,
        speculates: bool = True,
    ) -> None:
        self.name = name
        self.model = model
        self.tokenizer = tokenizer
        self.limits = limits or Limits()
        self.catalogue = Catalogue(name, model)
        self.reader = Reader(self.catalogue, tokenizer, self.limits)
        self.spelling = Spelling(tokenizer)
        self.writers = ThreadPoolExecutor(self.limits.parallel, "writer")
        self.turns = Turns()
        self.speculates = speculates
        self.alone = cache(require_drawable(model).expert) if drawn else None
        self.stopping = threading.Event()

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *exception: object) -> None:
        """End all that is being written, and wait for it."""
        self.stopping.set()
        self.writers.shutdown()
        self.reader.close()
