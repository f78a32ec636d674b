"""Checkpoints: all that a run needs to resume as if it had never stopped.

checkpoints/step-00000500/
    objective.safetensors  weights of the student, projections and heads
    optimizer.safetensors  the optimizer's tensors, by the weight's name
    state.json             the step, sums for the next line of the log, best validation so far, ...
    commit.json            checksums of these files, and the identity of the run

They hold no random states: every step is seeded by (seed, step, process). They hold neither the place in the stream nor
the learning rate: the step decides them. So a run may resume with another number of processes.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from palenka.ground.files import disk_errors, whole_directory
from palenka.ground.progress import info
from palenka.ground.records import commit, damage_of, read_record, write_record

_KEPT = 2
_COMMIT = "commit.json"
_WEIGHTS, _OPTIMIZER, _STATE = "objective.safetensors", "optimizer.safetensors", "state.json"


class Checkpoints:
    """The checkpoints of a run: the last two of them.

    Args:
        directory: where they lie.
        run: the identity of the run; checkpoints of another one are not used.
        kept: step whose checkpoint is kept too: a longer run may resume from it.
        every: steps between two checkpoints; None if the clock decides. One that a signal asked for between them is
            removed once it is not needed, so a stopped run ends with the files of an undisturbed one.
    """

    def __init__(self, directory: Path, run: str, kept: int = 0, every: int | None = None) -> None:
        self.directory, self.run, self._kept_step, self._every = directory, run, kept, every

    def save(self, step: int, module: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Write a step's checkpoint, under a temporary name first, and remove those no longer needed.

        Raises:
            OSError: if it cannot be written.
        """
        place = self.directory / f"step-{step:08}"
        weights = {name: weight.detach().contiguous() for name, weight in module.named_parameters()}
        with whole_directory(place) as aside, disk_errors():
            save_file(weights, aside / _WEIGHTS)
            save_file(dict(_optimizer_tensors(module, optimizer)), aside / _OPTIMIZER)
            write_record(aside / _STATE, {"step": step, **state})
            commit(aside, _COMMIT, [_WEIGHTS, _OPTIMIZER, _STATE], run=self.run, step=step)
            shutil.rmtree(place, ignore_errors=True)
        self._remove_old(but=place)

    def load(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, serves: Callable[[Mapping[str, Any]], bool]
    ) -> dict[str, Any] | None:
        """Load the last undamaged checkpoint into a module and its optimizer; returns its state, or None without one.

        Args:
            module: student, projections and heads.
            optimizer: of both.
            serves: whether the run can resume from a checkpoint with some state.
        """
        place = self.last_serving(serves)
        if place is None:
            return None
        _load_weights(module, load_file(place / _WEIGHTS))
        _load_optimizer(module, optimizer, load_file(place / _OPTIMIZER))
        return read_record(place / _STATE)

    def last_serving(self, serves: Callable[[Mapping[str, Any]], bool]) -> Path | None:
        """The last undamaged checkpoint from which the run can resume; None without one.

        Reads its files once, about 1 s per gigabyte. Names damaged ones.

        Args:
            serves: whether the run can resume from a checkpoint with some state.
        """
        for place in reversed(self._places()):
            if damage := damage_of(place, _COMMIT, run=self.run, step=step_of(place)):
                info(f"checkpoint {place} is not used: {damage}; an earlier one is, or else the run begins anew")
            elif serves(read_record(place / _STATE)):
                return place
        return None

    def remove_after(self, step: int) -> None:
        """Remove the checkpoints of later steps: damaged ones, and those of a previous attempt."""
        for place in self._places():
            if step_of(place) > step:
                shutil.rmtree(place)

    def end(self) -> None:
        """Remove what a signal left between two checkpoints: the run is at its end."""
        self._remove_old()

    def last_step(self) -> int:
        """The step of the last checkpoint, damaged or not; 0 without one."""
        return max(map(step_of, self._places()), default=0)

    def _remove_old(self, but: Path | None = None) -> None:
        """Remove all but the last that were due; and one more, that a signal may have asked for."""
        due = [place for place in self._places() if self._is_due(step_of(place))]
        for place in self._places():
            if place not in (*due[-_KEPT:], but) and step_of(place) != self._kept_step:
                shutil.rmtree(place)

    def _is_due(self, step: int) -> bool:
        return self._every is None or step % self._every == 0 or step == self._kept_step

    def _places(self) -> list[Path]:
        return sorted(self.directory.glob(f"step-{'[0-9]' * 8}"))


def step_of(place: Path) -> int:
    """The step of a checkpoint."""
    return int(place.name.removeprefix("step-"))


def _optimizer_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    for name, weight in module.named_parameters():
        for key, value in optimizer.state.get(weight, {}).items():
            yield f"{name}:{key}", value.detach().contiguous()


def _load_weights(module: nn.Module, saved: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.copy_(saved[name])


def _load_optimizer(module: nn.Module, optimizer: torch.optim.Optimizer, saved: dict[str, Tensor]) -> None:
    states: dict[str, dict[str, Tensor]] = {}
    for name, value in saved.items():
        owner, key = name.rsplit(":", 1)
        states.setdefault(owner, {})[key] = value
    for name, weight in module.named_parameters():
        for key, value in states.get(name, {}).items():
            # As in AdamW: the count of steps stays on the CPU, unless one kernel does all (fused).
            stays = key == "step" and not optimizer.defaults["fused"]
            optimizer.state[weight][key] = value if stays else value.to(weight.device)
