"""One draw for a whole answer: an exact sample of what evidence joins, at the cost of one expert."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from treering.composition.caches import views
from treering.composition.model import ComposedModel
from treering.composition.posterior import posterior
from treering.errors import TreeringError


def require_drawable(model: PreTrainedModel) -> ComposedModel:
    """The composition that whole answers can be drawn from.

    Raises:
        TreeringError: it is a single model, or its experts are joined by another rule than ``evidence``.
    """
    if not isinstance(model, ComposedModel):
        raise TreeringError("Only a composition has experts to draw one from; this is a single model.")
    if model.rule.name != "evidence" or model.rule.beside:
        raise TreeringError(
            "An expert can be drawn for a whole answer where experts are joined by evidence (with or without switch, "
            f"and nothing beside it), not by {model.rule}."
        )
    return model


@torch.no_grad()
def draw(
    model: PreTrainedModel,
    input_ids: Tensor,
    tokens: int,
    streamer: BaseStreamer | None = None,
    alone: Callable[[str], PreTrainedModel] | None = None,
) -> Tensor:
    """Write on from a text: draw an expert by what the text says for it, and sample from that expert alone.

    What evidence joins is a mixture of whole texts, not only of next tokens. With the weights ``w_i`` after the text x,
    those after more tokens are ``w_i(y_<t) ∝ w_i p_i(y_<t | x)``, and in the product of all steps each numerator
    cancels the next denominator:

        Π_t Σ_i w_i(y_<t) p_i(y_t | x, y_<t) = Σ_i w_i Π_t p_i(y_t | x, y_<t).

    So one may draw i from ``w`` once and leave all others asleep: an exact sample of the composition. With ``switch`` =
    α the mixture is that of a source which after each token, with probability α, goes on with an expert drawn from the
    prior (see ``posterior``): one draws how long an expert goes on, then the next, which first reads what it missed.

    This holds for sampling from the whole distribution. It does not hold where something is done to the mixture of each
    step: greedy decoding and beams (the likeliest text of a mixture need not be any expert's), a temperature, top-p,
    penalties, biases.

    Args:
        input_ids: one text [1, position], no padding.
        tokens: how many to write at most; the model's end token ends it.
        alone: the plain model of an expert by its name, if they are at hand; ``model.expert`` makes them.

    Returns:
        The text and what follows [1, position + new].

    Raises:
        TreeringError: see `require_drawable`.
    """
    composed = require_drawable(model)
    switch = composed.rule.parameters.get("switch", 0.0)
    experts, expert = list(composed.experts), cache(alone or composed.expert)
    weights, caches = _after(composed, input_ids, switch)
    ends, stream = _ends(composed.generation_config), streamer and _OneText(streamer)
    text, end = input_ids, input_ids.shape[1] + tokens
    while text.shape[1] < end and not (text is not input_ids and int(text[0, -1]) in ends):
        name = experts[int(torch.multinomial(weights.exp().cpu(), 1))]
        own: Any = expert(name)
        until = int(torch.empty(1).geometric_(switch)) if switch else tokens
        text = own.generate(
            text,
            attention_mask=torch.ones_like(text),
            past_key_values=caches.setdefault(name, DynamicCache(config=own.config)),
            generation_config=_sampling(composed.generation_config, min(until, end - text.shape[1])),
            streamer=stream,
        )
        weights = composed.prior
    if streamer:
        streamer.end()
    return text


class _OneText(BaseStreamer):
    """Several calls of ``generate``, each with the text so far as its prompt, as one for whoever looks on."""

    def __init__(self, streamer: BaseStreamer) -> None:
        self._streamer, self._prompts = streamer, 0

    def put(self, value: Tensor) -> None:
        if value.dim() > 1:
            self._prompts += 1
        if value.dim() == 1 or self._prompts == 1:
            self._streamer.put(value)

    def end(self) -> None:
        """Whether the text ends, this call does not know."""


def _after(composed: ComposedModel, input_ids: Tensor, switch: float) -> tuple[Tensor, dict[str, DynamicCache]]:
    """The experts' log-weights [expert] after a text, and what each has cached of all but its last token."""
    if input_ids.shape[1] == 1:
        return composed.prior, {}
    common = DynamicCache()
    composed(input_ids[:, :-1], past_key_values=common, use_cache=True, logits_to_keep=1)
    found = views(common, *composed._configs(), composed.rule)
    assert found.transcript is not None
    said = [own for own in found.transcript.foresaw(input_ids[:, -1]) if own is not None]
    state = found.transcript.weights[..., -1]
    weights = posterior(torch.stack(said)[..., None].to(state), composed.prior, state, switch)[:, 0, -1]
    caches = {}
    for name, place in composed.tree.places.items():
        parts = [*(found.trunks[key] for key in place.trunks), found.experts[name]]
        caches[name] = DynamicCache()
        # A trunk's layers are copied, not what they hold: from here on each expert goes on with its own.
        caches[name].layers = [copy.copy(layer) for part in parts if part for layer in part.layers]
    return weights, caches


def _sampling(given: GenerationConfig, tokens: int) -> GenerationConfig:
    ends = {"eos_token_id": given.eos_token_id, "pad_token_id": given.pad_token_id, "bos_token_id": given.bos_token_id}
    return GenerationConfig(do_sample=True, temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=tokens, **ends)


def _ends(given: GenerationConfig) -> list[int]:
    ends = given.eos_token_id
    return ends if isinstance(ends, list) else [] if ends is None else [ends]
