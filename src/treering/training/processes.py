"""The processes of a run, one or many, before and beside the Trainer that they share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from treering.errors import TreeringError
from treering.output import locked, require_new

T = TypeVar("T")


def on_cpu() -> bool:
    """Whether there is no accelerator."""
    return not torch.cuda.is_available() and not torch.backends.mps.is_available()


def processes() -> PartialState:
    """This process among those that ``torchrun`` started; alone, the only one."""
    return PartialState(cpu=on_cpu())


def decided(decide: Callable[[], T]) -> T:
    """What the first process finds, in all of them; the others wait for it.

    Raises:
        TreeringError: ``decide`` raised it there; it is raised in all.
    """
    if processes().num_processes == 1:
        return decide()
    found: list[T | str | None] = [None, None]
    if processes().is_main_process:
        try:
            found[0] = decide()
        except TreeringError as error:
            found[1] = str(error)
    broadcast_object_list(found)
    if found[1] is not None:
        raise TreeringError(str(found[1]))
    return found[0]  # type: ignore[return-value]


def in_any(flag: bool) -> bool:
    """Whether ``flag`` is set in any process, in all of them."""
    if not torch.distributed.is_initialized():
        return flag
    shared = torch.tensor(int(flag), device=processes().device)
    torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX)
    return bool(shared)


@contextmanager
def sole_writer(output: str | os.PathLike[str]) -> Iterator[None]:
    """Let no other run write ``output`` inside this block (see ``treering.output.locked``).

    Raises:
        TreeringError: another run does, or it lies below a file; in all processes of this one.
    """
    with ExitStack() as stack:

        def take() -> None:
            if not os.path.lexists(output):
                require_new(output)
            stack.enter_context(locked(output))

        decided(take)
        yield
