"""The frozen prefix: what the blocks below those that train make of the text, kept on disk instead of recomputed.

A frozen block gives the same hidden states every time, so a stage may read them from a file; for the next stage the
file is rolled forward through the blocks that have been frozen since, and a step costs the same at any depth.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from transformers import PreTrainedModel

from treering import backbone
from treering.errors import TreeringError
from treering.growth.blocks import only
from treering.output import explain_full_disk, sync_to_disk
from treering.training.order import Reading
from treering.training.processes import on_cpu, processes
from treering.training.run import digest

Precision = Literal["float32", "bfloat16", "int8"]
Prefix = Precision | Literal["auto", "recompute"]
BYTES: dict[Precision, int] = {"float32": 4, "bfloat16": 2, "int8": 1}
TOKENS_AT_ONCE = 2048 if on_cpu() else 2**15
"""Of a forward pass that fills the cache; a CPU is a fifth faster where the activations fit into its own caches."""

CHECKSUM = 4


def row_bytes(precision: Precision, positions: int, width: int) -> int:
    """Bytes of one block's hidden states on disk; in int8 every position has a float32 scale of its own."""
    return positions * (width * BYTES[precision] + (4 if precision == "int8" else 0))


def pack_row(hidden: Tensor, precision: Precision) -> bytes:
    """Hidden states [position, width] as bytes."""
    if precision == "float32":
        return hidden.float().numpy().tobytes()
    if precision == "bfloat16":
        return hidden.bfloat16().view(torch.int16).numpy().tobytes()
    scale = hidden.float().abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
    return scale.numpy().tobytes() + (hidden.float() / scale).round().to(torch.int8).numpy().tobytes()


def unpack_row(content: bytes, precision: Precision, positions: int) -> Tensor:
    """The inverse of `pack_row`, to the precision's rounding: float32 [position, width]."""
    buffer = bytearray(content)
    if precision == "float32":
        return torch.frombuffer(buffer, dtype=torch.float32).view(positions, -1)
    if precision == "bfloat16":
        return torch.frombuffer(buffer, dtype=torch.bfloat16).float().view(positions, -1)
    scale = torch.frombuffer(buffer, dtype=torch.float32, count=positions)
    values = torch.frombuffer(buffer, dtype=torch.int8, offset=4 * positions).view(positions, -1)
    return values * scale[:, None]


class HiddenStates:
    """A file of hidden states, one row for each packed block, every row with a checksum.

    Rows are read by position, not mapped into memory: a mapped file that is cut short kills the process that reads it.
    The operating system keeps what was read in memory either way.
    """

    def __init__(self, path: Path, rows: int, positions: int, width: int, precision: Precision) -> None:
        self.path, self.rows, self.positions, self.precision = path, rows, positions, precision
        self.row_bytes = row_bytes(precision, positions, width)
        self._file = os.open(path, os.O_RDWR if path.suffix == ".partial" else os.O_RDONLY)

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):
            os.close(self._file)

    @property
    def size(self) -> int:
        """Bytes of the whole file: rows, then their checksums."""
        return self.rows * (self.row_bytes + CHECKSUM)

    def __getitem__(self, row: int) -> Tensor:
        """Hidden states [position, width] in float32.

        Raises:
            TreeringError: the row is not what was written; the file has been put away, and will be made again.
        """
        content = self._intact(row)
        if content is None:
            self.path.unlink(missing_ok=True)
            raise TreeringError(
                f"The prefix cache {self.path} is damaged or was cut short (block {row}). It was removed, and nothing "
                "else is lost: run the same command again to go on from the last checkpoint with a new cache."
            )
        return unpack_row(content, self.precision, self.positions)

    def has(self, row: int) -> bool:
        """Whether the row has been written, whole."""
        return self._intact(row) is not None

    def write(self, row: int, hidden: Tensor) -> None:
        """Put hidden states [position, width] in their row; the checksum comes last."""
        content = pack_row(hidden, self.precision)
        os.pwrite(self._file, content, row * self.row_bytes)
        os.pwrite(self._file, zlib.crc32(content).to_bytes(CHECKSUM, "little"), self._checksum_at(row))

    def reserve(self) -> None:
        """Take the file's whole size on the disk, so that a full one is known before the work and not in its middle."""
        take = getattr(os, "posix_fallocate", None)  # not on macOS
        if take:
            take(self._file, 0, self.size)
        else:
            os.ftruncate(self._file, self.size)

    def sync(self) -> None:
        """Ask the operating system to write everything out."""
        os.fsync(self._file)

    def _intact(self, row: int) -> bytes | None:
        content = os.pread(self._file, self.row_bytes, row * self.row_bytes)
        checksum = os.pread(self._file, CHECKSUM, self._checksum_at(row))
        return content if checksum == zlib.crc32(content).to_bytes(CHECKSUM, "little") else None

    def _checksum_at(self, row: int) -> int:
        return self.rows * self.row_bytes + CHECKSUM * row


class HiddenBlocks(Reading):
    """Packed blocks with their hidden states, for a Trainer (see ``treering.training.loss.collate``).

    Args:
        hidden: of all ``blocks``.
    """

    def __init__(self, blocks: Any, hidden: HiddenStates, rows: Sequence[int] | np.ndarray) -> None:
        super().__init__(blocks, rows)
        self.hidden = hidden

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Block and hidden states [position, width]."""
        return super().__getitem__(index) | {"hidden": self.hidden[int(self.rows[index])]}


class PrefixCache:
    """Files of hidden states of the same packed blocks at different depths.

    A file's name is a hash of everything that its content follows from: the tokens, the embedding, the blocks below,
    how they compute, the precision. So what is read can never be stale. The directory is the run's own.

    Args:
        blocks: map-style, each a mapping with ``input_ids``, the same number in all.
        identity: of the tokens, a hash.
    """

    def __init__(self, directory: str | os.PathLike[str], blocks: Any, identity: str, precision: Precision) -> None:
        self.directory, self.blocks, self.precision = Path(directory), blocks, precision
        self.rows, self.positions = len(blocks), len(blocks[0]["input_ids"])
        self._identity = identity

    def path(self, model: PreTrainedModel, below: int) -> Path:
        """Where the hidden states after the lowest ``below`` blocks of ``model`` stand, or would stand."""
        return self.paths(model, [below])[below]

    def paths(self, model: PreTrainedModel, depths: Iterable[int]) -> dict[int, Path]:
        """`path` after each of so many blocks; every weight is looked at once."""
        depths = sorted(depths)
        stack = list(backbone.blocks(model))[: max(depths, default=0)]
        weights = [_weights(backbone.below_blocks(model)), *(_weights(block.named_parameters()) for block in stack)]
        found = dict[int, Path]()
        for below in depths:
            whole = [self._identity, self.rows, self.positions, self.precision, _configuration(model, below)]
            name = hashlib.sha256(json.dumps([*whole, weights[: below + 1]]).encode()).hexdigest()[:32]
            found[below] = self.directory / f"{name}.hidden"
        return found

    def states(self, model: PreTrainedModel, below: int, console: Console | None = None) -> HiddenStates:
        """The hidden states after the lowest ``below`` blocks, from their file, which is made if it is not there.

        It is rolled forward from the deepest file below that is there, else from the tokens. Interrupted, it is gone
        on with where it stopped. Of several processes each makes its part.

        Raises:
            TreeringError: no space is left, or a file that it is made from is damaged.
        """
        paths = self.paths(model, range(1, below + 1))
        if not paths[below].exists():
            lower = max((low for low, path in paths.items() if path.exists()), default=0)
            source = self._open(paths[lower], model) if lower else None
            with explain_full_disk(self.directory):
                self.directory.mkdir(parents=True, exist_ok=True)
                self._make(model, lower, source, below, paths[below], console or Console(quiet=True))
        return self._open(paths[below], model)

    def keep_only(self, model: PreTrainedModel, depths: Iterable[int]) -> None:
        """Remove all files but those after so many blocks of ``model``."""
        kept = set(self.paths(model, depths).values())
        for path in [*self.directory.glob("*.hidden"), *self.directory.glob("*.hidden.partial")]:
            if path not in kept:
                path.unlink(missing_ok=True)

    def _open(self, path: Path, model: PreTrainedModel) -> HiddenStates:
        return HiddenStates(path, self.rows, self.positions, model.config.hidden_size, self.precision)

    def _make(
        self,
        model: PreTrainedModel,
        lower: int,
        source: HiddenStates | None,
        below: int,
        path: Path,
        console: Console,
    ) -> None:
        """Fill the file of depth ``below`` from the ``source`` of depth ``lower``, or from the tokens."""
        group, partial = processes(), path.with_name(path.name + ".partial")
        if group.is_main_process:
            self._reserve(partial, model)
        group.wait_for_everyone()
        target = self._open(partial, model)
        step = max(1, TOKENS_AT_ONCE // self.positions)
        batches = [range(low, min(low + step, target.rows)) for low in range(0, target.rows, step)]
        columns = BarColumn(), TextColumn(f"hidden states after block {below}"), TimeRemainingColumn()
        device = next(model.parameters()).device
        with only(model, lower, below), Progress(*columns, console=console, transient=True) as progress:
            nn.Module.to(model, group.device)  # only the part that is there now
            for rows in progress.track(batches[group.process_index :: group.num_processes]):
                if not all(target.has(row) for row in rows):
                    for row, hidden in zip(rows, self._forward(model, rows, source), strict=True):
                        target.write(row, hidden)
            nn.Module.to(model, device)
        group.wait_for_everyone()
        if group.is_main_process:
            target.sync()
            partial.rename(path)
            sync_to_disk(self.directory)
        group.wait_for_everyone()

    def _reserve(self, partial: Path, model: PreTrainedModel) -> None:
        if partial.exists():
            return
        partial.touch()
        try:
            self._open(partial, model).reserve()
        except BaseException:
            partial.unlink()
            raise

    @torch.no_grad()
    def _forward(self, model: PreTrainedModel, rows: range, source: HiddenStates | None) -> Tensor:
        sample = next(model.parameters())
        if source is None:
            ids = torch.stack([torch.as_tensor(self.blocks[row]["input_ids"], dtype=torch.long) for row in rows])
            inputs = {"input_ids": ids.to(sample.device)}
        else:
            hidden = torch.stack([source[row] for row in rows])
            inputs = {"inputs_embeds": hidden.to(device=sample.device, dtype=sample.dtype)}
        training = model.training
        states = model.eval().base_model(use_cache=False, **inputs).last_hidden_state
        model.train(training)
        return states.cpu()


def _configuration(model: PreTrainedModel, below: int) -> str:
    """What of the configuration the hidden states after ``below`` blocks follow from."""
    # Not what the depth changes, nor what merely saving a model does: weights tell their own precision.
    depth = model.config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    volatile = (depth, "_name_or_path", "transformers_version", "treering", "architectures", "dtype")
    config = {name: value for name, value in model.config.to_dict().items() if name not in volatile}
    config |= {name: config[name][:below] for name in backbone.PER_BLOCK if config.get(name)}
    return json.dumps(config, sort_keys=True, default=str)


def _weights(parameters: Iterable[tuple[str, nn.Parameter]]) -> list[str]:
    return [f"{name} {parameter.dtype} {digest(parameter)}" for name, parameter in parameters]
