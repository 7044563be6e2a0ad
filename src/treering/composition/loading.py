"""Models from directories and the hub, which are a stranger's: what they claim is checked before it costs anything."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from treering.composition import layout
from treering.composition.adapters import CONFIG as ADAPTER
from treering.composition.bases import BRANCH, without_trunk
from treering.composition.configuration import CompositionConfig
from treering.composition.joining import require_fitted
from treering.composition.model import ComposedModel
from treering.composition.schema import MOST_CONFIGURATION, check_fields
from treering.composition.specs import rule as parse_rule
from treering.errors import TreeringError
from treering.gguf import is_gguf, require_gguf
from treering.headers import header
from treering.location import HUB, file_of, locate
from treering.output import recover
from treering.reading import printable, read_json


def load_model(
    directory: str | os.PathLike[str],
    dtype: Any = None,
    rule: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load an expert or a composition for use, from a directory or the hub; or a model out of a GGUF file.

    No pickle is opened, and no more memory or time is spent than the weights' files have room for. Of a repository on
    the hub, that is known when its files have been fetched.

    Args:
        dtype: of its weights, instead of the one that they are stored in.
        rule: joins a composition's experts this time, instead of the rule that it was stored with.
        trust_remote_code: run Python code that comes with the model, of a kind that transformers does not know.

    Raises:
        TreeringError: there is no model, its files are damaged, cut short or not those that their fingerprints name,
            its configuration claims more than they hold, it is an adapter, it brings code that was not allowed, or a
            rule is given for a model that is no composition, one that there is not, or one that has to be fitted first;
            of a GGUF file, see ``treering.gguf.require_gguf``, or transformers does not know its architecture.
    """
    packed = is_gguf(directory)
    place = os.fspath(directory) if packed else locate(directory)
    try:
        loaded: Any = _from_gguf(Path(place), dtype) if packed else _from_safetensors(place, dtype, trust_remote_code)
    except TreeringError:
        raise
    except Exception as error:  # transformers, safetensors and the hub each raise their own
        raise TreeringError(
            f"No model could be loaded from {printable(str(directory))}: {told(error)}\n"
            "If it is damaged, copy or make it again."
        ) from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise TreeringError(
            f"{printable(str(directory))} is damaged: its files lack {len(missing)} of the model's tensors, such as "
            f"{missing[0]}. Copy or make it again."
        )
    if rule is None:
        return model.eval()
    if not isinstance(model, ComposedModel):
        raise TreeringError(
            f"{directory} is a single {model.config.model_type} model, not a composition: there is nothing that the "
            f"rule {rule} could join."
        )
    require_fitted(model.config.fusion, parse_rule(rule))
    return model.eval().use(rule)


def _from_safetensors(place: str, dtype: Any, trust_remote_code: bool) -> Any:
    """A model and what its files lack."""
    config = require_model(place, trust_remote_code)
    if file_of(place, BRANCH):
        raise TreeringError(without_trunk(place, AutoConfig.from_pretrained(place, trust_remote_code=False)))
    files = weights(place)
    if config["model_type"] == CompositionConfig.model_type:
        read_composition(files[0].parent)
    # Packed weights hold up to sixteen numbers in one.
    packed = 16 if "quantization_config" in config else 1
    sizes = [packed * math.prod(tensor["shape"]) for file in files for tensor in header(file).values()]
    with no_larger_than(sizes, place):
        return AutoModelForCausalLM.from_pretrained(
            place,
            dtype=dtype or "auto",
            output_loading_info=True,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
        )


def _from_gguf(path: Path, dtype: Any) -> Any:
    """A model with its weights as plain numbers, and what the file lacks."""
    sizes = require_gguf(path)
    gguf_config(path)
    with no_larger_than(sizes, str(path)):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=dtype, output_loading_info=True
        )
    model = loaded[0]
    # It is no longer quantised, but would be saved as if it were.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    return loaded


def gguf_config(path: Path) -> PreTrainedConfig:
    """The configuration that a GGUF file holds, in Hugging Face's terms.

    Raises:
        TreeringError: transformers does not know its architecture, or a number in it is beyond all use.
    """
    try:
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    except ValueError as error:
        if "not supported" not in str(error):
            raise
        raise TreeringError(
            f"{printable(str(path))} cannot be read by transformers: {told(error)} Give the model as its makers "
            "published it: a directory with safetensors, or hub:NAME."
        ) from None
    check_fields(config.to_dict(), str(path))
    return config


def read_composition(directory: str | os.PathLike[str]) -> CompositionConfig:
    """The configuration of the composition in ``directory``, whose files are there and whole.

    Weights are not read.

    Raises:
        TreeringError: there is none, or something else, or files of it are missing or damaged.
    """
    directory = Path(directory)
    recover(directory)
    if not directory.is_dir():
        raise TreeringError(f"There is no directory {printable(str(directory))} with a composition.")
    values = _configuration(directory / CONFIG_NAME)
    if values["model_type"] != CompositionConfig.model_type:
        raise TreeringError(
            f"{directory} is a single {printable(values['model_type'])} model, not a composition. Join it with others "
            f"to make one: treering compose {directory} EXPERT -o OUT"
        )
    try:
        config = CompositionConfig.from_dict(values)
    except TreeringError as error:
        raise TreeringError(f"{directory / CONFIG_NAME} is damaged. {error}\nCopy the composition again.") from None
    except Exception as error:  # transformers raises TypeError, ValueError, AttributeError … for one and the same cause
        raise TreeringError(f"{directory} holds no composition that could be read: {told(error)}") from error
    if not config.experts:
        raise TreeringError(f"{directory / CONFIG_NAME} is damaged: it names no expert. Copy the composition again.")
    parse_rule(config.rule)
    layout.require_index(config, directory)
    return config


def told(error: BaseException) -> str:
    """What another library's exception says, as it may be shown."""
    lines = (str(error) or type(error).__name__).splitlines()
    return "\n".join(printable(line, 500) for line in lines[:20])


@contextmanager
def running(directory: str | os.PathLike[str]) -> Iterator[None]:
    """Say of a model that loads but cannot run whose fault that is: its configuration was never tried before.

    Raises:
        TreeringError: transformers or torch raised what they raise when sizes and settings do not fit together.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise TreeringError(
            f"The model in {printable(str(directory))} loads, but cannot run: {type(error).__name__}: {told(error)}\n"
            "Its config.json or generation_config.json is probably damaged. Copy or make the model again."
        ) from error


def require_model(place: str, trust_remote_code: bool) -> dict[str, Any]:
    """A model's configuration, after what can be told from it without weights.

    Raises:
        TreeringError: see `load_model`.
        OSError: the hub cannot be reached.
    """
    if adapter := file_of(place, ADAPTER):
        raise TreeringError(_adapter(place, adapter))
    path = file_of(place, CONFIG_NAME)
    if path is None:
        raise TreeringError(
            f"No model could be loaded from {printable(place)}: it has no {CONFIG_NAME}, or the hub cannot be reached. "
            "Give the directory of a finished model, or hub:NAME."
        )
    values = _configuration(path)
    check_fields(values, str(path))
    if (kind := values["model_type"]) not in CONFIG_MAPPING and not trust_remote_code:
        code = "and brings Python code of its own for it" if values.get("auto_map") else "and brings no code for it"
        raise TreeringError(
            f"{printable(place)} is a model of the kind {printable(kind)}, which transformers does not know, {code}. "
            "Treering runs no code that comes with a model unless it is told to: --trust-remote-code "
            "(trust_remote_code=True), when you have read it. Such a model cannot be joined or grown."
        )
    return values


def _configuration(path: Path) -> dict[str, Any]:
    values = read_json(path, MOST_CONFIGURATION)
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise TreeringError(f"{path} is damaged: it does not name a model_type. Copy or make the model again.")
    return values


def weights(place: str) -> list[Path]:
    """The safetensors files of a model.

    Raises:
        TreeringError: there are none, the index is damaged, or one that it names is missing.
    """
    if single := file_of(place, SAFE_WEIGHTS_NAME):
        return [single]
    index = file_of(place, layout.INDEX)
    if index is None:
        raise TreeringError(
            f"{printable(place)} holds neither {SAFE_WEIGHTS_NAME} nor {layout.INDEX}. Treering opens no other "
            "weights, as pickles can run code: convert them, by transformers' save_pretrained for instance."
        )
    values = read_json(index)
    named = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(named, dict) or not all(isinstance(file, str) for file in named.values()) or not named:
        raise TreeringError(f"{index} is damaged: it names no files. Copy or make the model again.")
    files = dict.fromkeys(named.values())
    if strange := [file for file in files if "/" in file or "\\" in file or not file.endswith(".safetensors")]:
        raise TreeringError(f"{index} names {printable(strange[0])}, which is no safetensors file beside it.")
    found = {file: file_of(place, file) for file in files}
    if missing := [file for file, path in found.items() if path is None]:
        raise TreeringError(f"{printable(place)} is damaged: {printable(missing[0])} is missing. Copy it again.")
    return [path for path in found.values() if path is not None]


@contextmanager
def no_larger_than(tensors: list[int], place: str) -> Iterator[None]:
    """Let no model be built in this block that has more parameters, or more numbers in them, than its files have.

    Models are built without memory before they are filled, but a million layers take for ever all the same, and what
    the files lack would be given memory.

    Args:
        tensors: of the files, the numbers that each can hold.

    Raises:
        TreeringError: the model is larger.
    """
    # Tied embeddings stand in a file once; buffers are not stored.
    most_numbers = 2 * sum(tensors) + 2**24
    most_tensors = 8 * len(tensors) + 256
    numbers = count = 0

    def registered(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal numbers, count
        if tensor is not None and tensor.is_meta:
            numbers, count = numbers + tensor.numel(), count + 1
        if numbers > most_numbers or count > most_tensors:
            raise TreeringError(
                f"The config.json of {printable(place)} describes a larger model than its files hold, which is "
                f"{sum(tensors):,} numbers in {len(tensors):,} tensors. It is damaged, or not theirs; copy it again. "
                "(If it is right after all, transformers loads it.)"
            )

    hooks = (
        module.register_module_parameter_registration_hook(registered),
        module.register_module_buffer_registration_hook(registered),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _adapter(place: str, file: Path) -> str:
    """What an adapter is, and how it becomes a model."""
    values = read_json(file, MOST_CONFIGURATION)
    values = values if isinstance(values, dict) else {}
    kind, base = (printable(str(values.get(name, "?"))) for name in ("peft_type", "base_model_name_or_path"))
    here = Path(base).is_dir() or Path(base).is_absolute()
    lines = [
        f"{printable(place)} is a PEFT adapter ({kind}) of the model {base}, not a model. Merge it into that first:",
        f"  treering model merge {printable(place)} --base {base if here else HUB + base} -o MERGED",
        "MERGED is then an ordinary model.",
    ]
    if not Path(base).is_dir():
        where = "a path of another machine" if Path(base).is_absolute() else "a name on the hub, or a path elsewhere"
        lines.append(
            f"{base} is no directory here but {where}: if it cannot be found, say with --base where the model is."
        )
    return "\n".join(lines)
