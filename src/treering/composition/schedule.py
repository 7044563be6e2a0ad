"""Which experts read when, and what the transcript notes of how they did.

Positions count the tokens of a text from 0:

- ``begin``: of the first token that is new in this call; so many were there before.
- ``read``: of the first token that an expert has not read; so many it has. One that the rule did not need is behind.
- ``changed``: of the first token whose evidence is other than it was before this call.
- ``kept``: of those that logits are asked for, counted from ``begin``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from treering.composition.posterior import most_credible, posterior
from treering.composition.reader import Reader, Text, said
from treering.composition.rules import Rule
from treering.composition.transcript import Transcript
from treering.errors import TreeringError


def read_on(
    readers: Sequence[Reader], transcript: Transcript, text: Text, chosen: Rule, prior: Tensor, kept: slice | Tensor
) -> tuple[list[Tensor], list[Tensor], int]:
    """Let as many experts read the new tokens as the rule needs, and note in the transcript how they did.

    Returns:
        For each expert its logits [batch, kept, vocab] and its final states of all new tokens [batch, new, width], 0
        and empty for one that was not needed; and from where the evidence ``changed``.

    Raises:
        TreeringError: only the tokens' embeddings were given, or what an expert says is no number.
    """
    if text.input_ids is None:
        raise TreeringError(f"The rule {chosen.name} weighs the experts by the tokens they read: give input_ids.")
    begin = transcript.get_seq_length()
    transcript.append(text.input_ids)
    new, text = text.input_ids, replace(text, begin=begin, tokens=transcript.input_ids)
    predicted = _predicted(text.attention_mask, transcript.input_ids)
    known = [reader.read for reader in readers]  # of so many tokens each one's likelihood is noted
    _recall(readers, transcript, begin, predicted)
    leading = {e for e, reader in enumerate(readers) if reader.ahead}
    sparse = chosen.name == "top_k" and begin > 0 and (new.shape[1] == 1 or bool(leading))
    changed, heard, everyone = begin, dict[int, tuple[Tensor, Tensor]](), set(range(len(readers)))
    free = leading | {e for e, reader in enumerate(readers) if reader.is_bare}
    while late := (_credible(transcript, begin, changed, chosen, prior) | free if sparse else everyone) - heard.keys():
        read, before = min(readers[e].read for e in late), min(known[e] for e in late)
        heard |= _hear(readers, sorted(late), transcript, text, predicted, kept)
        changed = min(changed, before + 1)
        if read == begin and new.shape[1] == 1:  # they had missed nothing: nobody's evidence is other than it was
            break
    _require_numbers(readers, transcript.likelihood[..., changed:])
    silent = torch.zeros_like(next(iter(heard.values()))[0])
    told = [heard.get(e, (silent, silent[..., :0])) for e in range(len(readers))]
    return [logits for logits, _ in told], [final for _, final in told], changed


def _recall(readers: Sequence[Reader], transcript: Transcript, begin: int, predicted: Tensor) -> None:
    """Note what the experts had said of the first new token before they saw it."""
    foresaw = transcript.foresaw(transcript.input_ids[:, begin])
    for e, (reader, likelihood) in enumerate(zip(readers, foresaw, strict=True)):
        if likelihood is not None:
            transcript.likelihood[e, :, begin] = torch.where(predicted[:, begin - 1], likelihood, 0.0)
        elif reader.read == begin > 0:
            reader.step_back()  # someone cropped the cache: what the expert said of the new token, it must say again
    transcript.pending = [None] * len(readers)


def _hear(
    readers: Sequence[Reader],
    late: Sequence[int],
    transcript: Transcript,
    text: Text,
    predicted: Tensor,
    kept: slice | Tensor,
) -> dict[int, tuple[Tensor, Tensor]]:
    """Let experts read all that they have not; their logits at the kept positions, and all new final states."""
    own = [readers[e] for e in late]
    wholes = [reader.final(text.since(reader.read)) for reader in own]
    news = [whole[:, text.begin - reader.read :] for reader, whole in zip(own, wholes, strict=True)]
    spoken = said(own, [new[:, kept] for new in news])
    heard: dict[int, tuple[Tensor, Tensor]] = {}
    for e, reader, whole, new, logits in zip(late, own, wholes, news, spoken, strict=True):
        if whole.shape[1] > 1:  # of one token alone it had said before what it thought of it
            whole_logits = logits if logits.shape[1] == whole.shape[1] else None
            likelihood = reader.log_likelihood(whole, transcript.input_ids[:, reader.read :], whole_logits)
            unread = slice(reader.read + 1, None)
            transcript.likelihood[e, :, unread] = torch.where(predicted[:, reader.read :], likelihood, 0.0)
        if reader.cache is not None:
            transcript.remember(e, logits if isinstance(kept, slice) else reader.logits(whole[:, -1:]))
        heard[e] = logits, new
    return heard


def _credible(transcript: Transcript, begin: int, changed: int, chosen: Rule, prior: Tensor) -> set[int]:
    """The experts that count after any new token, in any row, if what was not read had been certain to them."""
    state = transcript.weights[..., changed - 1]
    track = posterior(transcript.likelihood[..., changed:], prior, state, chosen.parameters.get("switch", 0.0))
    among = most_credible(track[..., begin - changed :], chosen.parameters.get("k", 1))
    return set(among.flatten(1).any(1).nonzero().flatten().tolist())


def _predicted(attention_mask: Tensor | None, tokens: Tensor) -> Tensor:
    """For every token but the first [batch, position - 1], whether it follows another of its text, no padding."""
    mask = torch.ones_like(tokens) if attention_mask is None else attention_mask
    return mask[:, 1:].bool() & mask[:, :-1].bool()


def _require_numbers(readers: Sequence[Reader], likelihood: Tensor) -> None:
    """Refuse an expert that computes no numbers; from then on nobody's evidence would be one.

    Raises:
        TreeringError: an expert gave a token no probability at all, not even 0.
    """
    lost = likelihood.isnan().flatten(1).any(1)
    if lost.any():
        names = ", ".join(reader.name for reader, own in zip(readers, lost.tolist(), strict=True) if own)
        raise TreeringError(
            f"What {names} makes of this text is no number (NaN): its weights are damaged, or they overflow in their "
            "precision. Load it in another (dtype), or remove it from the composition."
        )
