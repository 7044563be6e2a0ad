"""Our models as lm-eval asks for them; importing this makes ``--model treering`` known to lm-eval."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from treering import tokenizer as tokenizers
from treering.composition import load_model
from treering.corpus import Window
from treering.evaluation.bits import window_losses
from treering.training.loss import log_likelihood
from treering.voice import tells_progress


@register_model("treering")
class TreeringLM(HFLM):
    """An expert, a grown model, or a composition with any rule.

    Tokens, contexts and generation are those of lm-eval's ``hf``, so a plain checkpoint has the same scores there.
    Likelihoods are computed in batches that fit memory, whatever the number of experts, and of questions that differ
    in one last token only, the text before it is read once. Under a rule that weighs experts by evidence, that of the
    context counts for the continuation, as the chain rule has it.

    Args:
        pretrained: directory, ``hub:NAME``, ``FILE.gguf``, or a model that is loaded.
        tokenizer: of a model that is loaded; else the one beside it.
        rule: joins a composition's experts, instead of the rule that it was stored with.
        device: where it runs; by default on a GPU if there is one.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        TreeringError: see ``load_model``.
    """

    def __init__(
        self,
        pretrained: str | os.PathLike[str] | PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast | None = None,
        rule: str | None = None,
        device: str | None = None,
        batch_size: int | str | None = 8,
        trust_remote_code: bool = False,
        **kwargs: Any,
    ) -> None:
        if isinstance(pretrained, str | os.PathLike):
            tokenizer = tokenizers.load(pretrained, trust_remote_code)
            pretrained = load_model(pretrained, rule=rule, trust_remote_code=trust_remote_code)
        pretrained.to(torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))  # type: ignore[arg-type]
        super().__init__(pretrained, tokenizer=tokenizer, batch_size=batch_size, **kwargs)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether greedy decoding would write it.

        Args:
            requests: the texts, or None; IDs of the context, at least one; IDs of the continuation.
        """
        cut = []
        for index, (_, context, continuation) in enumerate(requests):
            tokens = [*context, *continuation][-self.max_length - 1 :]
            cut.append(Window(index, tokens, max(1, len(tokens) - len(continuation))))

        silent = disable_tqdm or self.rank != 0 or not tells_progress()

        def show(batches: Sequence[list[Window]]) -> Iterator[list[Window]]:
            yield from tqdm(batches, "reading", disable=silent, unit="batch", leave=False)

        nats, other = window_losses(self._surprise, self.model, cut, len(cut), show)
        found = [(-float(loss), not missed) for loss, missed in zip(nats, other, strict=True)]
        for (texts, _, _), answer in zip(requests, found, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return found

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """What greedy decoding, or what a task asks for, writes after each context: at most half of what is read."""
        room = self.max_length // 2
        short = []
        for request in requests:
            context, options = request.args
            most = min(options.get("max_gen_toks", self.max_gen_toks), room)
            short.append(replace(request, arguments=(context, options | {"max_gen_toks": most})))
        return super().generate_until(short, disable_tqdm or not tells_progress())

    def _surprise(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Nats, and 1 for each target that greedy decoding would not write [2, batch, position]."""
        alike, row = inputs.unique(dim=0, return_inverse=True)
        if len(alike) == len(inputs):
            logits = self.model(input_ids=inputs, use_cache=False).logits
        else:
            logits = self.model(input_ids=alike, use_cache=False).logits[row]
        likelihood = log_likelihood(logits, targets)
        return torch.stack([-likelihood, (logits.argmax(-1) != targets).to(likelihood)])
