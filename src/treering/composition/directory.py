"""Compositions on disk: made from experts' directories, which then come and go without the others being rewritten."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerFast

from treering import tokenizer as tokenizers
from treering.composition import fingerprints, layout
from treering.composition.arrangement import arrange, whole
from treering.composition.configuration import CompositionConfig, expert_config
from treering.composition.cuttings import Rooted, is_cutting, load_experts
from treering.composition.fitting import Fit, fit
from treering.composition.joining import (
    DEFAULT_RULE,
    compose,
    describe,
    outliving,
    require_fit,
    require_fitted,
    unequal,
    unfitted,
)
from treering.composition.loading import load_model, read_composition
from treering.composition.model import ComposedModel
from treering.composition.provenance import provenance
from treering.composition.saving import stored
from treering.composition.specs import rule as parse_rule
from treering.composition.vocabulary import require_covered, require_same_tokenizer, tokenizer_of
from treering.errors import TreeringError
from treering.gguf import is_gguf
from treering.headers import parameter_count
from treering.location import locate
from treering.output import explain_full_disk, link_or_copy, locked, replaced_directory, require_new, staged_directory
from treering.publishing.card import README, is_written, stated_licence, write_card
from treering.reading import inside, printable
from treering.registration import LOADER

Files = dict[str, Path]
"""Files by the name that they have in a directory, wherever they lie."""

_TOKENIZERS = "tokenizers"
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "additional_chat_templates/*",
)
_OWN_FILES = (
    *_TOKENIZER_FILES,
    _TOKENIZERS,
    f"{_TOKENIZERS}/*",
    "config.json",
    "generation_config.json",
    layout.INDEX,
    LOADER,
    layout.expert_file("*"),
    layout.substrate_file("*"),
    layout.trunk_file("*"),
    layout.end_file("norm", "*"),
    layout.end_file("head", "*"),
    layout.FUSION,
)


def compose_directories(
    experts: Mapping[str, str | os.PathLike[str]],
    output: str | os.PathLike[str],
    rule: str = DEFAULT_RULE,
    records: Mapping[str, Mapping[str, Any]] | None = None,
    across_substrates: bool = False,
) -> ComposedModel:
    """Compose trained experts into ``output``, with their common tokenizer.

    Args:
        experts: directories or hub:NAME, by the experts' names; of branches whose base is among them, what was cut
            off it will do (``treering.composition.cut``).
        records: by expert's name, what its record shall say: ``weight`` (1), ``licence`` and ``origin`` (as its
            directory tells).
        across_substrates: allow experts on different substrates, and models that Treering did not dock, if they have
            one tokenizer.

    Raises:
        TreeringError: the experts do not fit together (see ``treering.composition.compose``), they have different
            tokenizers or one that none of their vocabularies covers, one cannot be loaded, the rule has to be fitted
            first, or the output exists and is not this very composition.
    """
    there = _composition_of(output, experts)
    if there is None:
        require_new(output)
    if len(experts) < 2:
        raise TreeringError(f"A composition needs at least two experts, not {len(experts)}.")
    require_fitted(None, parse_rule(rule))
    given = records or {}
    for name in given:
        _require_known(name, experts)
    models = load_experts(experts)
    read = {name: tokenizer_of(path, models[name]) for name, path in experts.items()}
    require_same_tokenizer(read)
    found = {name: _record(path, given.get(name, {})) for name, path in experts.items()}
    composed = compose(models, rule, found, across_substrates)
    require_covered(composed.config, next(iter(read.values())))
    if there is not None and _told(there) == _told(composed.as_stored()):
        return composed
    with (
        explain_full_disk(Path(output).parent),
        staged_directory(output) as staging,
        _saved(read) as saved,
    ):
        composed.save_pretrained(staging)
        _place_tokenizers(saved, staging)
        write_card(staging)
    return composed


def _composition_of(directory: str | os.PathLike[str], names: Collection[str]) -> CompositionConfig | None:
    """What a directory tells of the composition of these experts in it; None if there is none that could be read."""
    try:
        config = read_composition(directory)
    except TreeringError:
        return None
    return config if [record["name"] for record in config.experts] == list(names) else None


def _told(config: PreTrainedConfig) -> dict[str, Any]:
    """All that tells a composition from others; its parts by their fingerprints."""
    experts = [record | {"config": expert_config(record).to_diff_dict()} for record in config.experts]
    for record in experts:
        record["config"].pop("transformers_version", None)
    told = {"rule": config.rule, "substrates": config.substrates, "fusion": config.fusion, "experts": experts}
    return dict(json.loads(json.dumps(told)))  # as it comes back from a file


def add_expert(
    directory: str | os.PathLike[str],
    expert: str | os.PathLike[str],
    name: str,
    rule: str | None = None,
    record: Mapping[str, Any] | None = None,
    across_substrates: bool = False,
) -> None:
    """Let one more expert join a composition, which is afterwards the one that composing them all would have made.

    What was fitted to the experts before is dropped with it: see `remove_expert`.

    Args:
        expert: a directory or hub:NAME; of a branch on an expert that is there, what was cut off it will do.
        rule: joins them from now on, instead of the composition's rule.
        record: what the expert's record shall say: ``weight`` (1), ``licence`` and ``origin`` (as its directory tells).
        across_substrates: see `compose_directories`.

    Raises:
        TreeringError: ``directory`` is no composition, the name is taken, the expert cannot be loaded or does not fit
            (see ``treering.composition.compose``), or the rule depends on what is dropped. Nothing was changed.
    """
    directory = Path(directory)
    before = read_composition(directory)
    names = [record["name"] for record in before.experts]
    with locked(directory):  # as in `remove_expert`
        if name in names:
            raise TreeringError(
                f"{directory} has an expert called {name!r} already. Choose another name: NAME={expert}"
            )
    chosen = outliving(before, rule, directory)
    bases = _standing(directory, before) if is_cutting(expert) else {}
    model = load_experts({name: expert}, bases)[name]
    read = {f"the composition {directory}": tokenizers.load(directory), name: tokenizer_of(expert, model)}
    require_same_tokenizer(read)
    alone = compose({name: model}, chosen, {name: _record(expert, record or {})}, across_substrates=True)
    require_fit([*before.experts, *alone.config.experts], across_substrates)
    after = describe([*unfitted(before), *alone.config.experts], chosen)
    require_covered(after, read[name])
    (joining,) = alone.config.experts
    if joining["substrate"] and (file := layout.substrate_file(joining["substrate"])) in layout.shard_files(before):
        fingerprints.verify(before, directory, [file])
        _require_same_matrix(directory / file, alone.shards()[file], name)
    wholes = {name: whole(alone.tree, joining, stored(alone))}
    with _saved({name: read[name]}) as saved:
        tokens = {other: _tokenizer_files(directory, other) for other in names} | saved
        rewrite(directory, before, after, wholes=wholes, tokens=tokens)


def remove_expert(directory: str | os.PathLike[str], name: str, rule: str | None = None) -> list[str]:
    """Let an expert leave a composition without a trace: it is afterwards the one that composing the others would make.

    What was fitted (a gate, an adapter, weights) depends on all experts, so it is dropped; fitted weights become 1.

    Args:
        rule: joins the others from now on, instead of the composition's rule.

    Returns:
        Files in ``directory`` that no composition has, such as a model card; they were kept, and may name the expert.

    Raises:
        TreeringError: ``directory`` is no composition, it has no such expert or no other, or the rule depends on what
            is dropped. Nothing was changed.
    """
    directory = Path(directory)
    before = read_composition(directory)
    with locked(directory):  # what one that died left goes, even if that one was done and nothing remains to do
        _require_known(name, [record["name"] for record in before.experts])
    if len(before.experts) == 1:
        raise TreeringError(f"{name} is the only expert of {directory}; delete the directory instead.")
    records = [record for record in unfitted(before) if record["name"] != name]
    after = describe(records, outliving(before, rule, directory))
    return rewrite(directory, before, after)


def list_experts(directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The experts of a composition, in order.

    Returns:
        Of each, all that its record says, and besides its ``share`` of the prior, its ``family``, ``layers`` and
        ``width``, the number of its own ``parameters`` (0 where others have the same ones), and ``same_as``, the others
        that are byte for byte this one.

    Raises:
        TreeringError: ``directory`` is no composition, or damaged.
    """
    config = read_composition(directory)
    total = sum(record["weight"] for record in config.experts)
    experts, places = [], config.tree.places
    for record in config.experts:
        own, name = expert_config(record), record["name"]
        alone = places[name].own  # else all that it is made of belongs to others, too
        parameters = parameter_count(Path(directory) / layout.expert_file(name)) if alone else 0
        shape = {"family": own.model_type, "layers": own.num_hidden_layers, "width": own.hidden_size}
        size = {"share": record["weight"] / total, "parameters": parameters}
        experts.append(record | shape | size | {"same_as": _same_as(record, config.experts)})
    return experts


def _same_as(record: Mapping[str, Any], experts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Who is made of the very same parts; where the parts of a family are not known, nobody."""
    others = (other for other in experts if other["name"] != record["name"])
    return [other["name"] for other in others if record.get("path") and other.get("path") == record["path"]]


def reweight(directory: str | os.PathLike[str], weights: Mapping[str, float]) -> None:
    """Give experts other weights, relative to each other's; those not named keep theirs.

    The weights are the prior of `evidence` and its kin, and all there is to `weighted`.

    Raises:
        TreeringError: ``directory`` is no composition, it has no such expert, or the weights are no prior. Nothing was
            changed.
    """
    directory = Path(directory)
    config = read_composition(directory)
    for name in weights:
        _require_known(name, [record["name"] for record in config.experts])
    records = [record | {"weight": float(weights.get(record["name"], record["weight"]))} for record in config.experts]
    fusion = {name: fit for name, fit in (config.fusion or {}).items() if name != "weighted"}
    rewrite(directory, config, describe(records, config.rule, fusion))


def set_rule(directory: str | os.PathLike[str], rule: str) -> None:
    """Store another rule, as `treering.composition.rule` reads it, in a composition.

    Raises:
        TreeringError: ``directory`` is no composition, there is no such rule, or it has to be fitted first. Nothing was
            changed.
    """
    directory = Path(directory)
    config = read_composition(directory)
    require_fitted(config.fusion, parse_rule(rule))
    rewrite(directory, config, describe(config.experts, rule, config.fusion))


def fit_directory(
    directory: str | os.PathLike[str],
    texts: Mapping[str, Sequence[str]],
    rule: str,
    tokens: int | None = None,
    console: Console | None = None,
) -> Fit:
    """Fit what a rule can learn to the experts of a composition, which is joined by that rule from now on.

    Args and Raises: see `treering.composition.fitting.fit`. If anything is raised, nothing was changed.
    """
    directory = Path(directory)
    before = read_composition(directory)
    model, tokenizer = load_model(directory), tokenizers.load(directory)
    assert isinstance(model, ComposedModel)
    done = fit(model, tokenizer, texts, rule, tokens, console)
    learned = {file: tensors for file, tensors in model.shards().items() if file == layout.FUSION}
    rewrite(directory, before, describe(model.config.experts, str(model.rule), model.config.fusion), new=learned)
    return done


def rewrite(
    directory: Path,
    before: CompositionConfig,
    after: CompositionConfig,
    new: Mapping[str, dict[str, Tensor]] | None = None,
    wholes: Mapping[str, Mapping[str, Tensor]] | None = None,
    tokens: Mapping[str, Files] | None = None,
) -> list[str]:
    """Make the composition in ``directory`` the one that ``after`` describes, all at once.

    Shards that stay are linked. Those of substrates and of what experts have alone are read once, to compare them with
    their fingerprints; what a path names, such as a trunk, is compared by whoever loads it.

    Args:
        before: what it was when ``after`` was decided upon.
        new: tensors by shard; they are written instead of what there was.
        wholes: by expert that joins, its tensors as Hugging Face names them.
        tokens: by expert, the files of its tokenizer; those that ``directory`` has for it by default.

    Returns:
        Files that do not belong to a composition; they stay too.

    Raises:
        TreeringError: the disk is full, a file of the composition is a link or a device, a shard that stays is not what
            was written, or somebody else changed the composition meanwhile. Whatever is raised, nothing was changed.
    """
    names = [record["name"] for record in after.experts]
    after.substrates = before.substrates
    with explain_full_disk(directory.parent), replaced_directory(directory) as staging:
        if read_composition(directory).to_dict() != before.to_dict():
            raise TreeringError(f"{directory} was changed by somebody else meanwhile. Run the same command again.")
        foreign = _foreign(directory)
        written = _rearranged(directory, before, after, wholes or {}) | dict(new or {})
        fingerprints.record(after, directory, written)
        for file in layout.shard_files(after):
            if file in written:
                layout.write_shard(written[file], staging / file)
            else:
                link_or_copy(inside(directory, file), staging / file)
        layout.write_description(after, staging)
        if names == [record["name"] for record in before.experts]:
            _link(_only(directory, ("generation_config.json",)), staging)
        else:
            GenerationConfig.from_model_config(after).save_pretrained(staging)
        _place_tokenizers(tokens or {name: _tokenizer_files(directory, name) for name in names}, staging)
        _link(foreign, staging)
        write_card(staging, stated_licence(directory))
    return sorted(foreign)


def _rearranged(
    directory: Path, before: CompositionConfig, after: CompositionConfig, joining: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, dict[str, Tensor]]:
    """The shards that a composition has after a change and not before: who joins or leaves changes what is shared.

    Args:
        joining: by expert that joins, its tensors as Hugging Face names them.

    Raises:
        TreeringError: what has to be divided or put together is not what was written.
    """
    stay = _staying(before, after)
    missing = [part for part in layout.parts(after) if part.file not in stay and part.kind != "fit"]
    needed = {next((name for name in part.experts if name in joining), part.experts[0]) for part in missing}
    there = needed & {record["name"] for record in before.experts}
    wholes = {**joining, **_stored_wholes(directory, before, there)}
    records = [record for record in after.experts if record["name"] in wholes]
    arranged = layout.shards(arrange(after.tree, records, wholes))
    return {part.file: arranged[part.file] for part in missing}


def _stored_wholes(directory: Path, config: CompositionConfig, names: Collection[str]) -> dict[str, dict[str, Tensor]]:
    """By expert, its tensors in a composition as Hugging Face names them; read when they are used, but for one reading
    of each file that compares it with its fingerprint.

    Raises:
        TreeringError: they are not what was written.
    """
    used = [part for part in layout.parts(config) if set(names) & set(part.experts)]
    fingerprints.verify(config, directory, {part.file for part in used})
    shards = {part.file: fingerprints.shard(inside(directory, part.file)) for part in used}
    wholes = {}
    for record in config.experts:
        if record["name"] in names:
            own = (shards[part.file] for part in used if record["name"] in part.experts)
            tensors = {name: tensor for shard in own for name, tensor in shard.items()}
            wholes[record["name"]] = whole(config.tree, record, tensors)
    return wholes


def _standing(directory: Path, config: CompositionConfig) -> dict[str, Rooted]:
    """What a branch that joins a composition may stand on."""
    known = {record["name"]: record for record in config.experts if record.get("path")}
    wholes = _stored_wholes(directory, config, known)
    return {name: (record["path"], expert_config(record), wholes[name]) for name, record in known.items()}


def _staying(before: CompositionConfig, after: CompositionConfig) -> set[str]:
    """The shards that are the same before and after: named alike, and of experts that share as much as they did."""
    old, new = before.tree.places, after.tree.places
    changed = {layout.expert_file(name) for name in new if name not in old or new[name].alone != old[name].alone}
    return set(layout.shard_files(before)) & set(layout.shard_files(after)) - changed


def _foreign(directory: Path) -> Files:
    """The files in a composition's directory that are not its own.

    Raises:
        TreeringError: one of its own is a link, which could lead anywhere, or one is a device.
    """
    files = _files(directory)
    for name, path in files.items():
        if _is_own(name) or not path.is_symlink():
            inside(directory, name)
    return {
        name: path
        for name, path in files.items()
        if not _is_own(name) and not (name == README and is_written(path))  # which is written anew
    }


def _record(expert: str | os.PathLike[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """What a composition notes of an expert: what was given, else what its directory tells."""
    told = {"origin": Path(expert).name} if is_gguf(expert) else provenance(locate(expert))
    return told | dict(given)


def _require_known(name: str, names: Any) -> None:
    if name not in names:
        raise TreeringError(f"There is no expert {printable(repr(name))}. There are: {', '.join(names)}.")


def _require_same_matrix(path: Path, shard: dict[str, Tensor], name: str) -> None:
    """Refuse an embedding that differs from the stored substrate whose fingerprint it bears."""
    stored = fingerprints.shard(path)
    if not all(torch.equal(stored[key], tensor.cpu()) for key, tensor in shard.items()):
        raise TreeringError(unequal([[name], [f"the experts of {path.parent}"]]))


@contextmanager
def _saved(read: Mapping[str, PreTrainedTokenizerFast]) -> Iterator[dict[str, Files]]:
    """The files of tokenizers, by expert."""
    with ExitStack() as stack:
        files: dict[str, Files] = {}
        for name, tokenizer in read.items():
            place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            tokenizers.save(tokenizer, place)
            files[name] = _only(place, _TOKENIZER_FILES)
        yield files


def _tokenizer_files(directory: Path, name: str) -> Files:
    """The files of an expert's tokenizer in a composition."""
    own = directory / _TOKENIZERS / name
    return _files(own) if own.is_dir() else _only(directory, _TOKENIZER_FILES)


def _place_tokenizers(tokens: Mapping[str, Files], directory: Path) -> None:
    """Let a composition have the tokenizer of its first expert.

    Of one identity, tokenizers may still differ in what does not decide IDs (a chat template, say). Each expert's that
    does lies in a directory of its own, so that nothing of an expert that leaves is needed, or stays.
    """
    first = next(iter(tokens.values()))
    _link(first, directory)
    for name, files in tokens.items():
        if {file: path.read_bytes() for file, path in files.items()} != {f: p.read_bytes() for f, p in first.items()}:
            _link(files, directory / _TOKENIZERS / name)


def _link(files: Files, directory: Path) -> None:
    for name, path in files.items():
        link_or_copy(path, directory / name)


def _files(directory: Path) -> Files:
    """All files below a directory, and links, none of which is followed."""
    found = []
    for folder, folders, names in os.walk(directory):
        found += [Path(folder, name) for name in names]
        found += [Path(folder, name) for name in folders if Path(folder, name).is_symlink()]
    return {path.relative_to(directory).as_posix(): path for path in sorted(found)}


def _only(directory: Path, patterns: tuple[str, ...]) -> Files:
    return {name: path for name, path in _files(directory).items() if any(fnmatch(name, p) for p in patterns)}


def _is_own(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in _OWN_FILES)
