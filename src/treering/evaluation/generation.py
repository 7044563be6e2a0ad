"""Text from a model."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast, set_seed
from transformers.generation.streamers import BaseStreamer

from treering.errors import TreeringError
from treering.tokenizer import encode, separator


def prompt_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, text: str, tokens: int) -> list[int]:
    """The IDs that a model reads before it writes: the separator that begins a document, as in training, and the text.

    Raises:
        TreeringError: with ``tokens`` to write after it, the text does not fit into the model's context.
    """
    prompt = [separator(tokenizer), *encode(tokenizer, [text])[0]]
    context = model.config.max_position_embeddings
    if len(prompt) + tokens > context:
        raise TreeringError(
            f"The text has {len(prompt):,} tokens and {tokens:,} more were asked for; the model's context is "
            f"{context:,}. Shorten the text or ask for at most {max(0, context - len(prompt)):,}."
        )
    return prompt


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    text: str,
    tokens: int = 100,
    temperature: float = 0.8,
    top_p: float = 0.95,
    beams: int = 1,
    seed: int | None = None,
    streamer: BaseStreamer | None = None,
) -> str:
    """What the model writes after ``text``, read as the beginning of a document.

    Args:
        tokens: how many to write at most; a document may end sooner.
        temperature: of the sampling; 0 takes the likeliest token each time, or searches with ``beams``.

    Raises:
        TreeringError: the text does not fit (see `prompt_ids`), or beams and sampling are asked for together.
    """
    prompt = prompt_ids(model, tokenizer, text, tokens)
    if beams > 1 and temperature > 0:
        raise TreeringError("Beam search does not sample: give --temperature 0 with --beams.")
    if seed is not None:
        set_seed(seed)
    sampling = {"temperature": temperature, "top_p": top_p} if temperature > 0 else {}
    input_ids = torch.tensor([prompt], device=model.device)
    generation: Any = model
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
    return str(tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True))
