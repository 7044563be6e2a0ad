"""Speculative decoding inside a composition: one expert leads by some tokens, the others check them in one pass.

Most of the time the most credible expert says what the composition says. So it goes ahead by some tokens, and the
others then read all of these at once, which takes a large model hardly longer than one token does. Each is kept, or
replaced by what the composition says, at little more than the leader's own time. Where tokens are sampled, both draw
with the same random numbers, so that they mostly draw the same token, and the text is the composition's for that seed.
The leader reads no token twice: what it made of them is at hand when the others check.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache, GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from treering.composition.caches import crop, takes_back, views
from treering.composition.model import ComposedModel
from treering.composition.reader import Text
from treering.composition.transcript import REMEMBERED, Transcript
from treering.errors import TreeringError

MOST = REMEMBERED // 2
"""Tokens that a leader goes ahead at most."""
CHECK = 2.0
"""How long an expert takes to check some tokens, where writing one takes 1: on one thread of a processor 2 to 3, where
reading the weights takes most of the time 1. The best lead depends little on it."""
FADING = 0.9
"""What the tokens of one draft count beside those of the next."""


def may_speculate(model: PreTrainedModel) -> bool:
    """Whether a model is a composition whose rule knows who leads, and of experts that can take back what they read."""
    if not isinstance(model, ComposedModel) or "evidence" not in model.rule.needs or len(model.experts) < 2:
        return False
    trunks, experts = model._configs()
    return takes_back([*trunks.values(), *experts.values()])


@torch.no_grad()
def speculative(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: Callable[[Tensor, Tensor], Tensor],
    stopping_criteria: Callable[[Tensor, None], Tensor],
    generation_config: GenerationConfig,
    streamer: BaseStreamer | None = None,
    **given: Any,
) -> Tensor:
    """Write on from one text, led by its most credible expert: ``model.generate(ids, custom_generate=speculative)``.

    The text is the one that ``generate`` writes without it, sampled or not, for the same seed (of two tokens that are
    equally likely up to rounding it may be the other one): temperature, top-p, penalties, biases and whatever else
    ``generate`` knows take hold of what the composition says. A token is sampled as ``torch.multinomial`` does it, by
    an exponential race (`choice`), in which the leader and the composition have the same handicaps. Where their
    distributions differ by δ in total variation they choose the same token with a probability of at least
    (1 − δ) / (1 + δ), at most 1 − δ, which only a text that depends on the leader could reach (Daliri, Musco & Suresh
    2024, *Coupling without communication and drafter-invariant speculative decoding*, arXiv 2408.07978; the drafts
    themselves are those of Leviathan, Kalman & Matias 2023, without the one token more where all are kept, for which
    the leader would have to read another).

    With ``assistant_ensemble_weight`` = w below 1 (of transformers' ``GenerationConfig``) the text is one of
    ``w·p + (1 − w)·q``, of the composition's distribution p and the leader's q at each token. Fewer tokens are
    rejected, and since −ln is convex, at least the share w is kept of what p gains over q in nats on any text.

    ``generate`` hands no streamer on to a ``custom_generate``: give it one, and by ``functools.partial`` the same here.

    Args:
        input_ids: [1, position].
        given: what else a forward call takes. ``past_key_values`` holds what the composition has read of the text, at
            most all but the last token; ``attention_mask`` [1, position] is 0 for padding before it.

    Returns:
        The text and what follows [1, position + new].

    Raises:
        TreeringError: it is no composition, or its rule does not weigh the experts by evidence; several texts, or more
            than their tokens, are asked for; nothing may be cached.
    """
    # A parameter of its own for what `generate` prepares would make it take that as it was given, unprepared.
    cache, mask = given.get("past_key_values"), given.get("attention_mask")
    composed, cache = _require(model, input_ids, generation_config, cache)
    weight = getattr(generation_config, "assistant_ensemble_weight", None)
    parts = views(cache, *composed._configs(), composed.rule)
    text, pace, ended = input_ids, Pace(_checking(composed)), False
    read = cache.get_seq_length()
    if parts.transcript is not None and read and all(own is None for own in parts.transcript.pending):
        read -= 1  # someone cropped the cache: nobody knows any more what comes next, and who leads has to
        crop(parts, read)
    if read < text.shape[1] - 1:
        unread = _text(composed, text[:, :-1], read, mask)
        transcript, readers = composed._readers(cache, composed.rule)
        composed.join(unread, readers, transcript, slice(unread.length - 1, None))
    cache.activate_past_recording()
    handicaps = list[Tensor | None]()  # of tokens to come, as far as they were drafted before
    while not ended:
        begin = text.shape[1]
        transcript, readers = composed._readers(cache, composed.rule)
        assert transcript is not None
        leader = readers[leading(transcript, composed.prior, text[:, -1])]
        lead, ahead, drafted = pace.lead, text, list[Tensor]()
        while len(drafted) < lead and not ended:
            final = leader.go_ahead(_text(composed, ahead, ahead.shape[1] - 1, mask))
            drafted.append(logits_processor(ahead, _scores(leader.logits(final)[:, -1], text)))
            if len(handicaps) < len(drafted):
                handicaps.append(handicap(drafted[-1]) if generation_config.do_sample else None)
            ahead = torch.cat([ahead, choice(drafted[-1], handicaps[len(drafted) - 1])], 1)
            ended = bool(stopping_criteria(ahead, None).all())
        new = _text(composed, ahead[:, :-1], begin - 1, mask)
        joined = composed.join(new, readers, transcript, slice(0, None)).logits
        agreed = 0
        for own, said, token in zip(drafted, joined.unbind(1), ahead[0, begin:], strict=True):
            scores = logits_processor(text, _scores(said, text))
            came = choice(scores if weight is None else blend(scores, own, weight), handicaps.pop(0))
            text = torch.cat([text, came], 1)
            if streamer is not None:
                streamer.put(came[0].cpu())
            if came != token:
                ended = bool(stopping_criteria(text, None).all())
                break
            agreed += 1
        pace.learn(agreed, len(drafted))
        crop(parts, text.shape[1] - 1)
    if streamer is not None:
        streamer.end()
    return text


def handicap(scores: Tensor) -> Tensor:
    """Random numbers for one token, like scores [batch, vocab]: those that ``torch.multinomial`` would draw now."""
    return torch.empty_like(scores).exponential_()


def choice(scores: Tensor, handicap: Tensor | None) -> Tensor:
    """The next token [batch, 1] by scores [batch, vocab]: the likeliest, or sampled by an exponential race.

    Of independent E_v ~ Exp(1), E_v / p_v is least for v with probability p_v. Whoever has nearly the same p mostly
    chooses the same token by the same E.
    """
    return (scores if handicap is None else scores.softmax(-1) / handicap).argmax(-1, keepdim=True)


def blend(joined: Tensor, drafted: Tensor, weight: float) -> Tensor:
    """Scores of ``weight`` · p + (1 − ``weight``) · q, of the distributions by scores ``joined`` and ``drafted``."""
    return torch.lerp(drafted.softmax(-1), joined.softmax(-1), weight).log()


def leading(transcript: Transcript, prior: Tensor, token: Tensor) -> int:
    """The most credible expert of those that have read all before the last ``token`` [batch]."""
    if not transcript.get_seq_length():
        return int(prior.argmax())
    weights = transcript.weights[:, 0, -1].tolist()
    foresaw = {e: float(own[0]) for e, own in enumerate(transcript.foresaw(token)) if own is not None}
    return max(foresaw, key=lambda e: (weights[e] + foresaw[e], weights[e]))


@dataclass
class Pace:
    """How many tokens a leader goes ahead: as many as are expected to bring most tokens for the time.

    With the share a of drafted tokens that are kept, k of them bring ``Σ_{i<k} a^i`` tokens, since the first that is
    not kept is replaced. They take k steps of the leader and one check of each of the others.

    Attributes:
        checking: experts that read with the leader.
        kept, tried: of the drafted tokens, the older the less they count; at the beginning those of four good ones.
    """

    checking: int
    kept: float = 4.0
    tried: float = 4.5

    @property
    def lead(self) -> int:
        """Tokens to go ahead now."""
        share = self.kept / self.tried
        gains = [sum(share**i for i in range(k)) / (k + CHECK * self.checking) for k in range(1, MOST + 1)]
        return 1 + gains.index(max(gains))

    def learn(self, kept: int, drafted: int) -> None:
        """Take note of a draft; what came after the first token that was not kept says nothing."""
        self.kept = FADING * self.kept + kept
        self.tried = FADING * self.tried + min(kept + 1, drafted)


def _scores(logits: Tensor, text: Tensor) -> Tensor:
    """Logits as ``generate`` hands them to processors: beside the text, in float32."""
    return logits.to(text.device, torch.float32)


def _text(composed: ComposedModel, tokens: Tensor, begin: int, mask: Tensor | None) -> Text:
    """What is to be read of a text from ``begin`` on; a ``mask`` tells of its beginning, and all the rest counts."""
    if mask is not None:
        mask = F.pad(mask, (0, tokens.shape[1] - mask.shape[1]), value=1).to(composed.device)
    return Text.of(tokens.to(composed.device), mask, begin)


def _checking(composed: ComposedModel) -> int:
    """Experts that read every token, beside the leader; one without blocks of its own costs nothing."""
    reading = sum(expert.config.num_hidden_layers > 0 for _, expert in composed.named_experts())
    most = composed.rule.parameters.get("k", 1) if composed.rule.name == "top_k" else reading
    return min(most, reading) - 1


def _require(
    model: PreTrainedModel, input_ids: Tensor, asked: GenerationConfig, cache: Cache | None
) -> tuple[ComposedModel, Cache]:
    if not isinstance(model, ComposedModel):
        raise TreeringError("Only in a composition one expert can lead the others; this is a single model.")
    if not may_speculate(model):
        raise TreeringError(
            "An expert can lead where several are weighed by evidence (evidence, gate, top_k), and all of them keep "
            f"keys and values; not in this composition, by {model.rule}."
        )
    if len(input_ids) != 1 or not input_ids.shape[1]:
        raise TreeringError("Speculative decoding writes on from one text of at least one token: no batch, no beams.")
    if asked.return_dict_in_generate:
        raise TreeringError("Speculative decoding returns tokens alone: leave out return_dict_in_generate.")
    if cache is not None and cache.get_seq_length() >= input_ids.shape[1]:
        raise TreeringError("The cache has read all of the text: crop it, or give the text with the next token.")
    if cache is None:
        raise TreeringError("Speculative decoding takes back what was not kept, from a cache: leave out use_cache.")
    return model, cache
