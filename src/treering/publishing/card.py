"""A model card: what a model is, how it was made, what it may be used for, told from the files beside its weights.

Nothing in it depends on when, where or how fast it was made, so the same model always has the same card.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import AliasChoices, Field, TypeAdapter, ValidationError

from treering.errors import TreeringError
from treering.headers import parameter_count
from treering.output import write_file
from treering.reading import inside, printable, read_json
from treering.recipe import Schema

README = "README.md"
MARKER = (
    "<!-- Written by Treering, which renews it when the model changes; without this line it never touches the card. -->"
)
TITLES = {
    "composition": "A composition of experts",
    "branch": "A branch on a pretrained model",
    "grown": "A grown model",
    "expert": "An expert on a frozen substrate",
    "model": "A language model",
}
MOST_CARD = 2**20
"""Bytes of a card that is read."""
LICENCES = frozenset(
    (
        "apache-2.0", "mit", "mpl-2.0", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-3.0",
        "cc-by-sa-4.0", "cc-by-nc-4.0", "gpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "odc-by", "openrail", "unlicense",
    )
)  # fmt: skip
"""Names that the hub knows."""


def front_matter(path: Path) -> dict[str, Any]:
    """What a model card tells machines.

    Raises:
        TreeringError: it cannot be read; says why.
    """
    try:
        text = _text(path)
        return dict(ModelCard(text, ignore_metadata_errors=True).data.to_dict())
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError, yaml.YAMLError) as error:
        raise TreeringError(
            f"The model card {path} cannot be read: {printable(str(error))}\nMend its front matter."
        ) from None


def _text(path: Path) -> str:
    with path.open("rb") as file:
        text = file.read(MOST_CARD + 1).decode("utf-8")
    if len(text) > MOST_CARD:
        raise ValueError(f"it is longer than {MOST_CARD >> 20} MiB")
    return text


def is_written(path: Path) -> bool:
    """Whether a card is there, and Treering's own."""
    if not path.is_file():
        return False
    with inside(path.parent, path.name).open("rb") as file:
        return MARKER.encode() in file.read(MOST_CARD)


def stated_licence(directory: str | os.PathLike[str]) -> str | None:
    """The licence that the owner stated in a card of ours, if there is one.

    Raises:
        TreeringError: the card cannot be read.
    """
    path = Path(directory) / README
    data = front_matter(path) if is_written(path) else {}
    return data.get("license_name") or data.get("license")


def write_card(directory: str | os.PathLike[str], licence: str | None = None) -> None:
    """Write the card of a model that has none; one that is there is left alone.

    Args:
        licence: the owner's, for the model itself.

    Raises:
        TreeringError: the model's files are damaged.
    """
    if not (Path(directory) / README).exists():
        write_file(Path(directory) / README, card(directory, licence))


def renew_card(
    directory: str | os.PathLike[str],
    licence: str | None = None,
    scores: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """Write the card of a model anew, with the licence and the scores that it had where none are given; returns it.

    Raises:
        TreeringError: it is somebody's own card, or see `card`.
    """
    path = Path(directory) / README
    if path.exists() and not is_written(path):
        raise TreeringError(
            f"{path} was not written by Treering, so it is left alone. Move it away to have one written; or keep it: "
            "treering publish takes any card."
        )
    text = renewed(directory, licence, scores)
    write_file(path, text)
    return text


def renewed(
    directory: str | os.PathLike[str],
    licence: str | None = None,
    scores: Sequence[Mapping[str, Any]] | None = None,
    name: str | None = None,
) -> str:
    """The card of a model with what its card of ours stated, where nothing else is given; see `card`."""
    path = Path(directory) / README
    if scores is None and is_written(path):
        scores = front_matter(path).get("treering_scores")
    return card(directory, licence or stated_licence(directory), scores or [], name)


def card(
    directory: str | os.PathLike[str],
    licence: str | None = None,
    scores: Sequence[Mapping[str, Any]] = (),
    name: str | None = None,
) -> str:
    """The card of an expert, a grown model, a branch, or a composition.

    Args:
        licence: the owner's, for the model itself.
        scores: rows of ``treering eval bits``, ``eval tasks`` or ``compare``, as their ``--json`` has them.
        name: of its repository; a card does not tell what a directory is called.

    Raises:
        TreeringError: there is no model, its files are damaged, or a score is no row of those commands.
    """
    directory = Path(directory)
    if not (directory / "config.json").is_file():
        raise TreeringError(f"{directory} holds no model: there is no config.json.")
    config = _object(directory / "config.json")
    training = _object(inside(directory, "training.json")) if (directory / "training.json").exists() else {}
    kind = _kind(config, training)
    if kind == "composition":
        # Not above: what makes compositions writes their cards.
        from treering.composition.loading import read_composition

        read_composition(directory)  # a stranger's has to fit its schema
    experts = config["experts"] if kind == "composition" else []
    averaged = _averaged(training)
    told = [_within(training, "origin"), *experts]
    records = [_source(source) for record in told for source in _sources(record)]
    sources = list({tuple(record.items()): record for record in records}.values())
    body = _template().render(
        title=printable(name) if name else TITLES[kind],
        what=_what(kind, config),
        facts=_facts(kind, directory, config, training),
        use=_use(kind, printable(name or "DIR"), config),
        hint=_hint(kind, printable(name or "DIR"), training),
        made=_made(kind, config, training),
        sources=sources,
        experts=[_expert(record, experts, directory) for record in experts],
        scores=_scores(scores),
        limits=_limits(kind, training),
        licences=_licences(licence, sources, {"Its experts": experts, "The models that it is the mean of": averaged}),
        marker=MARKER,
    )
    return f"---\n{_metadata(kind, config, licence, sources, scores)}\n---\n{body}\n"


def _template() -> Any:
    loader = PackageLoader("treering", "publishing")
    return Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True).get_template("card.md.jinja")


def _metadata(
    kind: str,
    config: Mapping[str, Any],
    licence: str | None,
    sources: Iterable[Mapping[str, str]],
    scores: Sequence[Mapping[str, Any]],
) -> str:
    """The front matter, as the hub has it."""
    own: dict[str, Any] = {}
    if licence is not None:
        known = licence.lower() in LICENCES
        own = {"license": licence.lower()} if known else {"license": "other", "license_name": licence}
    if scores:
        own["treering_scores"] = [dict(row) for row in scores]
    languages = sorted({source["language"] for source in sources if source["language"]})
    base = str(_within(config, "treering_trunk").get("base", ""))
    data = ModelCardData(
        language=languages or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["treering", kind],
        base_model=base.removeprefix("hub:") if "/" in base else None,
        **own,
    )
    return str(data.to_yaml())


def _kind(config: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    if config.get("model_type") == "treering_composition":
        return "composition"
    if config.get("treering_trunk"):
        return "branch"
    return "grown" if _within(training, "origin").get("growth") else "expert" if config.get("treering") else "model"


def _what(kind: str, config: Mapping[str, Any]) -> str:
    if kind == "composition":
        names = ", ".join(printable(str(record.get("name"))) for record in config["experts"])
        return (
            f"A composition of {len(config['experts'])} experts ({names}), joined at their output by the rule "
            f"`{printable(str(config.get('rule')))}`. They were trained apart; nothing was trained to join them."
        )
    if kind == "branch":
        trunk = _within(config, "treering_trunk")
        return (
            f"A branch of {printable(str(trunk.get('base')))}: its first {trunk.get('blocks')} blocks, embedding and "
            "head are that model's, byte for byte; the blocks above them learned the text below."
        )
    grown = "A language model that was grown block by block" if kind == "grown" else "A decoder-only language model"
    return (
        f"{grown} on a frozen substrate of token vectors that never trained." if config.get("treering") else f"{grown}."
    )


def _facts(kind: str, directory: Path, config: Mapping[str, Any], training: Mapping[str, Any]) -> list[tuple[str, str]]:
    first = config if kind != "composition" else _within(config["experts"][0], "config")
    shape = [] if kind == "composition" else [("family", str(config.get("model_type"))), ("blocks", _layers(config))]
    context = first.get("max_position_embeddings") or first.get("n_positions")
    standing = _within(config, "treering").get("fingerprint")
    found = [
        *shape,
        ("parameters", f"{parameters(directory):,}"),
        ("width", str(first.get("hidden_size") or first.get("n_embd"))),
        ("vocabulary", f"{_count(first.get('vocab_size')):,}"),
        ("context", f"{_count(context):,} tokens"),
        *([("substrate", f"`{standing}`")] if standing else []),
    ]
    return [(name, printable(value)) for name, value in found]


def _layers(config: Mapping[str, Any]) -> str:
    return str(config.get("num_hidden_layers") or config.get("n_layer") or "?")


def parameters(directory: Path) -> int:
    """How many numbers the weights beside a configuration have, from the files' headers.

    Raises:
        TreeringError: a file is damaged.
    """
    return sum(map(parameter_count, sorted(directory.glob("*.safetensors"))))


def _use(kind: str, name: str, config: Mapping[str, Any]) -> str:
    told = f'"{name}", trust_remote_code=True' if kind == "composition" else f'"{name}"'
    text = 'tokenizer("To open the file,"'
    # What stands on a substrate learnt documents from the token on that ends the one before; others' tokenizers know
    # their own. It goes in by its number: in a text, our tokenizers take what looks like it for text.
    begun = f'tokenizer.pad({{"input_ids": [[tokenizer.eos_token_id, *{text})["input_ids"]]]}}, return_tensors="pt")'
    inputs = begun if config.get("treering") else f'{text}, return_tensors="pt")'
    return (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"model = AutoModelForCausalLM.from_pretrained({told})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({told})\n"
        f"inputs = {inputs}\n"
        "output = model.generate(**inputs, max_new_tokens=50)\n"
        "print(tokenizer.decode(output[0], skip_special_tokens=True))"
    )


def _hint(kind: str, name: str, training: Mapping[str, Any]) -> str:
    if kind == "composition":
        place = f"hub:{name}" if "/" in name else name
        return (
            "The code that this trusts is `modeling_treering.py`, which needs torch and transformers alone and gives "
            "the same logits as Treering. With Treering it is faster, and no code of a repository runs: "
            f'`treering.load_model("{place}")`, `treering.load_tokenizer("{place}")`.'
        )
    begins = printable(str(_within(training, "origin", "data", "tokenizer").get("separator") or "</s>"))
    return (
        f"It is a plain checkpoint: Treering need not be installed. Texts began after `{begins}` in training; with "
        "that token before the prompt the model is at home."
    )


def _made(kind: str, config: Mapping[str, Any], training: Mapping[str, Any]) -> list[str]:
    settings, measured, origin = (_within(training, part) for part in ("settings", "measured", "origin"))
    made = []
    if kind == "composition":
        made.append("`treering compose`: the experts' own checkpoints, each stored once, what they share too.")
        for name, fit in (config.get("fusion") or {}).items():
            if isinstance(fit, Mapping):
                made.append(f"`{printable(name)}` was fitted on documents set apart.")
    if origin.get("growth"):
        stages = _within(origin, "growth", "plan").get("stages") or []
        made.append(
            f"Grown in {len(stages)} stage{'s' * (len(stages) != 1)}; `growth.json` has the plan and what each cost."
        )
    if models := _averaged(training):
        told = [f"`{printable(str(one.get('name')))}`" for one in models]
        made.append(
            f"It is the mean of the weights of {len(models)} models that went on from one: {', '.join(told)}; "
            "`training.json` has their records, and their shares."
        )
    if isinstance(start := origin.get("start"), str):
        made.append(f"It went on from `{printable(start)}`, whose own record says what that had read.")
    if teacher := _within(origin, "teacher"):
        share, name = teacher.get("share"), printable(str(teacher.get("name")))
        part = f" ({share:.0%} of the loss)" if isinstance(share, int | float) else ""
        made.append(f"It also learnt what `{name}` says of this text{part}, and so something of what that had read.")
    if tokens := _count(measured.get("tokens")):
        made.append(
            f"{tokens:,} tokens read, learning rate {settings.get('learning_rate')}, schedule "
            f"{printable(str(settings.get('schedule')))}, warm-up {settings.get('warmup')}, precision "
            f"{printable(str(settings.get('precision')))}, seed {settings.get('seed')}; `training.json` has the rest."
        )
    if isinstance(bits := measured.get("validation_bits_per_byte"), int | float):
        steps, kept = _count(measured.get("steps")), _count(measured.get("kept_step"))
        which = f" by the weights of step {kept:,} of {steps:,}, its best," if steps and kept and kept < steps else ""
        apart = _count(_within(origin, "data", "calibration").get("documents"))
        text = "documents set apart for choosing (calibration)" if apart else "the held-out documents"
        chose = " They also chose the step." if settings.get("keep") == "best" else ""
        made.append(f"On {text} of the same sources it has {bits:.3f} bits per byte,{which} packed in blocks.{chose}")
    return made or ["Nothing beside the weights tells."]


def _sources(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = _within(record, "data").get("sources")
    return [source for source in found if isinstance(source, Mapping)] if isinstance(found, list) else []


def text_licences(record: Mapping[str, Any]) -> list[str]:
    """What is stated of the text that an expert read, by its record; each licence once."""
    stated = (_within(source, "source").get("licence") for source in _sources(record))
    return list(dict.fromkeys(printable(str(licence)) for licence in stated if licence))


def _source(source: Mapping[str, Any]) -> dict[str, str]:
    own = _within(source, "source")
    path, name = str(own.get("path") or ""), str(source.get("name"))
    return {
        "name": printable(name),
        "documents": f"{_count(source.get('used_documents')):,}",
        "tokens": f"{_count(source.get('used_tokens')):,}",
        "licence": printable(str(own.get("licence") or "not stated")),
        "language": path.removeprefix("embedded:") if path.startswith("embedded:") else "",
    }


def _expert(record: Mapping[str, Any], experts: Sequence[Mapping[str, Any]], directory: Path) -> dict[str, str]:
    total = sum(float(other.get("weight") or 0) for other in experts) or 1.0
    own, origin = directory / f"expert-{record.get('name')}.safetensors", str(record.get("origin") or "")
    stated = ", ".join(text_licences(record))
    return {
        "name": printable(str(record.get("name"))),
        "share": f"{float(record.get('weight') or 0) / total:.1%}",
        "parameters": f"{parameter_count(own):,} of its own" if own.exists() else "shared",
        "origin": printable(origin) if re.fullmatch(r"[\w.-]+/[\w.-]+", origin) else "a directory",
        "licence": printable(str(record.get("licence") or (f"text: {stated}" if stated else "not stated"))),
    }


class Score(Schema, extra="ignore"):
    """A row of any of our commands, as its ``--json`` has it."""

    value: float = Field(validation_alias=AliasChoices("bits_per_byte", "value"))
    on: str = Field(validation_alias=AliasChoices("text", "subject", "task"), min_length=1)
    measure: str = "bits per byte"
    model: str = ""
    rule: str | None = None
    low: float | None = None
    high: float | None = None
    stderr: float | None = None
    count: int | None = Field(None, validation_alias=AliasChoices("documents", "count"), ge=0, le=10**15)


def _scores(rows: Any) -> list[dict[str, str]]:
    """Rows of our commands, as people read them.

    Raises:
        TreeringError: something is none.
    """
    try:
        scores = TypeAdapter(list[Score]).validate_python(rows)
    except ValidationError:
        raise TreeringError(
            "The scores are no rows of treering eval bits, eval tasks or compare (their --json): each has a value, and "
            "a text, a task or a subject that it is of."
        ) from None
    return [
        {
            "model": printable(score.model + (f", {score.rule}" if score.rule else "")),
            "on": printable(score.on),
            "measure": printable(score.measure),
            "value": f"{score.value:.3f}",
            "interval": _interval(score),
            "count": "" if score.count is None else f"{score.count:,}",
        }
        for score in scores
    ]


def _interval(score: Score) -> str:
    if score.low is not None and score.high is not None:
        return f"{score.low:.3f} … {score.high:.3f}"
    if score.stderr is not None:
        return f"{score.value - 1.96 * score.stderr:.3f} … {score.value + 1.96 * score.stderr:.3f}"
    return ""


def _limits(kind: str, training: Mapping[str, Any]) -> list[str]:
    tokens = _count(_within(training, "measured").get("tokens"))
    limits = [
        "It continues text as its sources would. It was not taught to follow instructions, to be truthful, or to "
        "refuse, unless a model below it was.",
        "It may repeat what it read: whoever has the weights can try to extract training text.",
    ]
    if 0 < tokens < 1_000_000_000 and kind in ("expert", "grown"):
        limits.append(f"It read {tokens:,} tokens, far fewer than models in use have read: a research artefact.")
    if kind == "composition":
        limits.append("A fingerprint in `config.json` tells damage and exchange of weights, not who made them.")
    return limits


def _averaged(training: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The records of the models whose mean a model is; none of one that is no mean."""
    found = _within(training, "origin").get("average")
    return [record for record in found if isinstance(record, Mapping)] if isinstance(found, list) else []


def _licences(
    licence: str | None, sources: Sequence[Mapping[str, str]], models: Mapping[str, Sequence[Mapping[str, Any]]]
) -> str:
    """What is stated of a model, of the text that it learned from, and of the ``models`` in it, by what these are."""
    own = f"The model: {printable(licence)}." if licence else "The owner has stated no licence for the model."
    stated = list(dict.fromkeys(source["licence"] for source in sources))
    text = f" The text that it learned from: {', '.join(stated)}." if stated else ""
    for what, records in models.items():
        parts = [printable(str(record["licence"])) for record in records if record.get("licence")]
        text += f" {what}: {', '.join(dict.fromkeys(parts))}." if parts else ""
    return own + text


def _within(values: Any, *names: str) -> Mapping[str, Any]:
    """The fields that stand inside others; none where a stranger's file has something else there."""
    for name in names:
        values = values.get(name) if isinstance(values, Mapping) else None
    return values if isinstance(values, Mapping) else {}


def _count(value: Any) -> int:
    """A whole number, or 0 where a stranger's file has something else."""
    return value if isinstance(value, int) else 0


def _object(path: Path) -> dict[str, Any]:
    values = read_json(path)
    if not isinstance(values, dict):
        raise TreeringError(f"{path} is damaged: it holds no fields. Copy it again.")
    return values
