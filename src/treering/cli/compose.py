"""``treering compose`` and ``treering generate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup


class JoinByDefault(TyperGroup):
    """``compose A B -o C`` means ``compose join A B -o C``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["join", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=JoinByDefault,
    no_args_is_help=True,
    help="Join trained experts into one model (compose A B -o OUT), and let experts come and go.",
)


@app.command()
def join(
    experts: Annotated[list[str], typer.Argument(help="two or more experts: DIR, or NAME=DIR")],
    output: Annotated[Path, typer.Option("--output", "-o", help="directory of the composition")],
    rule: Annotated[
        str | None, typer.Option(help="how the experts' distributions are joined", show_default="evidence")
    ] = None,
) -> None:
    """Join trained experts into one model; nothing is trained, and the experts stay as they are."""
    from treering.cli.console import progress
    from treering.composition import DEFAULT_RULE, compose_directories
    from treering.errors import TreeringError

    console, named = progress(), dict[str, str]()
    for expert in experts:
        name, _, path = expert.rpartition("=")
        name = name or Path(path).name
        if name in named:
            raise TreeringError(f"Two experts are called {name!r}; name them: NAME=DIR.")
        named[name] = path
    composed = compose_directories(named, output, rule or DEFAULT_RULE)
    total = sum(p.numel() for p in composed.parameters())
    console.print(f"{output}: {', '.join(named)} joined by {composed.rule}; {total:,} parameters, one substrate")


def generate(
    model: Annotated[str, typer.Argument(metavar="DIR", help="an expert, a composition, or a hub name")],
    text: Annotated[str, typer.Argument(help="what to go on from; may be empty")],
    tokens: Annotated[int, typer.Option(min=1, help="how many tokens at most")] = 100,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token each time")] = 0.8,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="sample from the likeliest tokens of this mass")] = 0.95,
    beams: Annotated[int, typer.Option(min=1, help="beam search, with temperature 0")] = 1,
    seed: Annotated[int | None, typer.Option(help="for the same text again")] = None,
    rule: Annotated[str | None, typer.Option(help="join a composition's experts by another rule this time")] = None,
) -> None:
    """Let a model go on from a text."""
    from transformers import TextStreamer

    from treering.cli.console import progress
    from treering.composition import load_model
    from treering.evaluation import generate as generate_text
    from treering.evaluation import prompt_ids
    from treering.tokenizer import load

    progress()
    tokenizer, loaded = load(model), load_model(model, rule=rule)
    prompt_ids(loaded, tokenizer, text, tokens)  # what cannot work is said before anything is printed
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True) if beams == 1 else None
    print(text, end="", flush=True)
    written = generate_text(loaded, tokenizer, text, tokens, temperature, top_p, beams, seed, streamer=streamer)
    if streamer is None:
        print(written)
