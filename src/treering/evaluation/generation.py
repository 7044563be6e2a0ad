"""Text from a model."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.generation.streamers import BaseStreamer

from treering.backbone import context_length
from treering.composition import draw, may_speculate, require_drawable, speculative
from treering.errors import TreeringError
from treering.tokenizer import encode, separator


def prompt_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, text: str, tokens: int) -> list[int]:
    """The IDs that a model reads before it writes: the separator that begins a document, as in training, and the text.

    Raises:
        TreeringError: with ``tokens`` to write after it, the text does not fit into the model's context.
    """
    prompt = [separator(tokenizer), *encode(tokenizer, [text])[0]]
    require_room(model, len(prompt), tokens)
    return prompt


def require_room(model: PreTrainedModel, read: int, tokens: int) -> None:
    """Refuse a text that leaves no room for an answer.

    Raises:
        TreeringError: so many tokens ``read``, and ``tokens`` written after them, are more than the model's context.
    """
    context = context_length(model.config)
    if read + tokens > context:
        room = context - read
        remedy = (
            f"Shorten the text or ask for at most {room:,}" if room > 0 else "There is no room for more: shorten it"
        )
        raise TreeringError(
            f"The text has {read:,} tokens and {tokens:,} more were asked for; the model's context is "
            f"{context:,}. {remedy}."
        )


def require_one_way(
    model: PreTrainedModel, temperature: float | None, top_p: float | None, beams: int, drawn: bool
) -> None:
    """Refuse ways to write that do not go together.

    Raises:
        TreeringError: beams and sampling, or a drawn answer of a model or with settings for which it is no sample.
    """
    if drawn:
        require_drawable(model)
        if beams > 1 or temperature not in (None, 1) or top_p not in (None, 1):
            raise TreeringError(
                "An expert that is drawn for a whole answer is a sample of the composition at temperature 1 from all "
                "tokens: leave out --temperature, --top-p and --beams with --draw."
            )
    elif beams > 1 and temperature != 0:
        raise TreeringError("Beam search does not sample: give --temperature 0 with --beams.")


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    text: str,
    tokens: int = 100,
    temperature: float | None = None,
    top_p: float | None = None,
    beams: int = 1,
    seed: int | None = None,
    streamer: BaseStreamer | None = None,
    drawn: bool = False,
    speculate: bool = True,
) -> str:
    """What the model writes after ``text``, read as the beginning of a document.

    Args:
        tokens: how many to write at most; a document may end sooner.
        temperature: of the sampling, 0.8 if not given; 0 takes the likeliest token each time, or searches with
            ``beams``.
        top_p: of the sampling, 0.95 if not given.
        drawn: draw an expert for the whole answer, see ``treering.composition.draw``; with temperature and top-p 1.
        speculate: let a composition's most credible expert lead where that is possible: the same text at less cost,
            see ``treering.composition.speculative``.

    Raises:
        TreeringError: the text does not fit (see `prompt_ids`), or what is asked for does not go together (see
            `require_one_way`).
    """
    prompt = prompt_ids(model, tokenizer, text, tokens)
    require_one_way(model, temperature, top_p, beams, drawn)
    temperature, top_p = 0.8 if temperature is None else temperature, 0.95 if top_p is None else top_p
    if seed is not None:
        torch.manual_seed(seed)
    sampling: dict[str, Any] = {"temperature": temperature, "top_p": top_p} if temperature > 0 else {}
    input_ids = torch.tensor([prompt], device=model.device)
    if drawn:
        return _text(tokenizer, draw(model, input_ids, tokens, streamer)[0, len(prompt) :])
    generation: Any = model
    if speculate and beams == 1 and may_speculate(model):
        sampling["custom_generate"] = partial(speculative, streamer=streamer)
    output = generation.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=tokens,
        do_sample=temperature > 0,
        num_beams=beams,
        pad_token_id=tokenizer.pad_token_id,
        streamer=streamer,
        **sampling,
    )
    return _text(tokenizer, output[0, len(prompt) :])


def _text(tokenizer: PreTrainedTokenizerFast, ids: torch.Tensor) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True))
