"""Our models as lm-eval asks for them; importing this makes ``--model treering`` known to lm-eval."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor
from tqdm import tqdm
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerFast

from treering import tokenizer as tokenizers
from treering.composition import load_model
from treering.corpus import Window
from treering.evaluation.bits import LOGITS_AT_ONCE, Show, own_surprise, speakers, window_losses
from treering.training.loss import log_likelihood
from treering.voice import shows_bars


@register_model("treering")
class TreeringLM(HFLM):
    """An expert, a grown model, or a composition with any rule.

    Tokens, contexts and generation are those of lm-eval's ``hf``, so a plain checkpoint has the same scores there.
    Likelihoods are computed in batches that fit memory, whatever the number of experts, and a context that several
    continuations follow is read once. Under a rule that weighs experts by evidence, that of the context counts for the
    continuation, as the chain rule has it.

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
        # lm-eval's own command line asks for "cuda" unless told otherwise, and means it where there is one.
        device = "cpu" if (device or "cuda").startswith("cuda") and not torch.cuda.is_available() else device or "cuda"
        pretrained.to(torch.device(device))  # type: ignore[arg-type]
        super().__init__(pretrained, tokenizer=tokenizer, batch_size=batch_size, **kwargs)

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As `_loglikelihood_tokens`, of texts; lm-eval's own bar is shown where ours is."""
        return super().loglikelihood(requests, disable_tqdm or not shows_bars())

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in lm-eval's windows; what a rule learns goes on from window to window."""
        cut = list[Window]()
        for index, request in enumerate(requests):
            (text,) = request.args
            pairs = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            for context, continuation in map(make_disjoint_window, pairs):
                cut.append(Window(index, [*context, *continuation], len(context)))
        if not cut:
            return [0.0] * len(requests)
        bar = tqdm(total=len(cut), desc="reading", disable=self._silent(disable_tqdm), leave=False)
        (nats,) = window_losses(own_surprise(self.model), self.model, cut, len(requests), _told(bar))
        bar.close()
        for request, loss in zip(requests, nats, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, -float(loss))
        return [-float(loss) for loss in nats]

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
        sharing: dict[tuple[int, ...], list[int]] = {}
        for index, (_, context, _) in enumerate(requests):
            sharing.setdefault(tuple(context), []).append(index)
        together = list[tuple[tuple[int, ...], list[int]]]()
        alone = list[int]()
        for shared, indices in sharing.items():
            fits = len(shared) + max(len(requests[index][2]) for index in indices) <= self.max_length
            if fits and len(indices) > 1:
                together.append((shared, indices))
            else:
                alone += indices
        found: dict[int, tuple[float, bool]] = {}
        bar = tqdm(total=len(requests), desc="reading", disable=self._silent(disable_tqdm), leave=False)
        for shared, indices in together:
            found |= zip(indices, self._after(shared, [requests[index][2] for index in indices]), strict=True)
            bar.update(len(indices))
        found |= self._apart({index: requests[index][1:] for index in alone}, bar)
        bar.close()
        for index, (texts, _, _) in enumerate(requests):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, found[index])
        return [found[index] for index in range(len(requests))]

    @torch.no_grad()
    def _after(self, context: Sequence[int], continuations: Sequence[list[int]]) -> list[tuple[float, bool]]:
        """Continuations of one context, which is read once."""
        cache = DynamicCache()
        read: Any = self.model
        first = read(self._tensor([[*context]]), past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        width = max(map(len, continuations))
        at_once = max(1, LOGITS_AT_ONCE // (width * first.shape[-1] * speakers(self.model)))
        found = []
        for begin in range(0, len(continuations), at_once):
            part = continuations[begin : begin + at_once]
            targets = self._tensor([own + [0] * (width - len(own)) for own in part])
            logits = first.expand(len(part), -1, -1)
            if width > 1:
                own_cache = copy.deepcopy(cache)
                own_cache.batch_repeat_interleave(len(part))
                rest = read(targets[:, :-1], past_key_values=own_cache, use_cache=True).logits
                logits = torch.cat([logits, rest], 1)
            likelihood, greedy = log_likelihood(logits, targets), logits.argmax(-1) == targets
            for row, own in enumerate(part):
                said = likelihood[row, : len(own)].double().sum().item()
                found.append((said, bool(greedy[row, : len(own)].all())))
        return found

    def _apart(self, asked: Mapping[int, tuple[list[int], list[int]]], bar: tqdm) -> dict[int, tuple[float, bool]]:
        """Continuations each of its own context, by index, in batches of like length."""
        cut = []
        for row, (context, continuation) in enumerate(asked.values()):
            tokens = [*context, *continuation][-self.max_length - 1 :]
            cut.append(Window(row, tokens, max(1, len(tokens) - len(continuation))))
        if not cut:
            return {}
        nats, other = window_losses(self._surprise, self.model, cut, len(cut), _told(bar))
        return {index: (-float(loss), not missed) for index, loss, missed in zip(asked, nats, other, strict=True)}

    def _tensor(self, ids: Sequence[list[int]]) -> Tensor:
        return torch.tensor(ids, device=self.device)

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """What greedy decoding, or what a task asks for, writes after each context: at most half of what is read."""
        room = self.max_length // 2
        short = []
        for request in requests:
            context, options = request.args
            most = min(options.get("max_gen_toks", self.max_gen_toks), room)
            short.append(replace(request, arguments=(context, options | {"max_gen_toks": most})))
        return super().generate_until(short, disable_tqdm or not shows_bars())

    def _silent(self, disable_tqdm: bool) -> bool:
        return disable_tqdm or self.rank != 0 or not shows_bars()

    def _surprise(self, inputs: Tensor, targets: Tensor, *_: Any) -> tuple[Tensor, None]:
        """Nats, and 1 for each target that greedy decoding would not write [2, batch, position]."""
        logits = self.model(input_ids=inputs, use_cache=False).logits
        likelihood = log_likelihood(logits, targets)
        return torch.stack([-likelihood, (logits.argmax(-1) != targets).to(likelihood)]), None


def _told(bar: tqdm) -> Show:
    def show(batches: Sequence[list[Window]]) -> Iterator[list[Window]]:
        for batch in batches:
            yield batch
            bar.update(len(batch))

    return show
