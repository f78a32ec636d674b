"""Agreement: all processes of a run checkpoint, and stop, after the same step."""

import time
from signal import Signals

import torch
from accelerate import Accelerator

from palenka.ground.settings import seconds_of
from palenka.ground.stopping import StopRequest


class Agreement:
    """Decides after each step, for all processes alike.

    The first process alone knows when a checkpoint is due by the clock; a signal in any of them stops all.

    Args:
        accelerator: of the run; every process must ask after every step.
        every: steps between two checkpoints, or a time.
        request: what this process was asked for.
    """

    def __init__(self, accelerator: Accelerator, every: int | str, request: StopRequest) -> None:
        self._every, self._request = every, request
        self._is_first = accelerator.is_main_process
        self._last = time.monotonic()
        # On the processors: to ask an accelerator would wait for all of its work.
        self._group = torch.distributed.new_group(backend="gloo") if accelerator.num_processes > 1 else None

    def after(self, step: int) -> tuple[bool, Signals | None]:
        """Whether to checkpoint after a step, and the signal to stop by."""
        mine = torch.tensor([int(self._is_due(step)), self._request.by or 0])
        if self._group is not None:
            torch.distributed.all_reduce(mine, torch.distributed.ReduceOp.MAX, self._group)
        is_due, number = mine.tolist()
        return bool(is_due), Signals(number) if number else None

    def checkpointed(self) -> None:
        """The time until the next checkpoint begins now."""
        self._last = time.monotonic()

    def _is_due(self, step: int) -> bool:
        if isinstance(self._every, int):
            return step % self._every == 0
        return self._is_first and time.monotonic() >= self._last + seconds_of(self._every)
