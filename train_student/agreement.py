"""Agreement: all processes of a run checkpoint, and stop, after the same step."""

import time
from signal import Signals

import torch
from accelerate import Accelerator

from palenka.ground.settings import seconds_of
from palenka.ground.stopping import StopRequest


class Agreement:
    """Decides after each step, the same for all processes.

    Only the first process looks at the clock for checkpoints; a signal in any process stops all.

    Args:
        accelerator: of the run; every process must ask after every step.
        every: steps between two checkpoints, or a time.
        request: the stop request of this process.
    """

    def __init__(self, accelerator: Accelerator, every: int | str, request: StopRequest) -> None:
        self._every, self._request = every, request
        self._is_first = accelerator.is_main_process
        self._last = time.monotonic()
        # On the CPUs: an accelerator would have to finish all of its work first.
        self._group = torch.distributed.new_group(backend="gloo") if accelerator.num_processes > 1 else None

    def after(self, step: int) -> tuple[bool, Signals | None]:
        """Whether to checkpoint after a step, and the signal to stop by."""
        mine = torch.tensor([int(self._is_due(step)), self._request.by or 0])
        if self._group is not None:
            torch.distributed.all_reduce(mine, torch.distributed.ReduceOp.MAX, self._group)
        is_due, number = mine.tolist()
        return bool(is_due), Signals(number) if number else None

    def checkpointed(self) -> None:
        """Restart the time until the next checkpoint."""
        self._last = time.monotonic()

    def _is_due(self, step: int) -> bool:
        if isinstance(self._every, int):
            return step % self._every == 0
        return self._is_first and time.monotonic() >= self._last + seconds_of(self._every)
