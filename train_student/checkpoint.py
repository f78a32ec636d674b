"""Checkpoints: all that a run needs to go on as if it had never stopped.

checkpoints/step-00000500/
    objective.safetensors  weights of the student and of what is trained beside it
    optimizer.safetensors  the optimizer's tensors, by the weight's name
    state.json             place in the schedule and the stream, best validation so far, ...
    commit.json            checksums of these files, and the run that they are of

Random states are not among them: every step seeds its own from (seed, step, process). Nor is the place in the stream:
the step decides it. So a run may go on with another number of processes.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from palenka.ground.files import commit, damage_of, read_record, whole_directory, write_record
from palenka.ground.progress import info

_KEPT = 2
_NAME = "step-"
_COMMIT = "commit.json"
_WEIGHTS, _OPTIMIZER, _STATE = "objective.safetensors", "optimizer.safetensors", "state.json"


class Checkpoints:
    """The checkpoints of a run, the last two of them.

    Args:
        directory: that they are in.
        run: the identity of the run; those of another are not gone on from.
    """

    def __init__(self, directory: Path, run: str) -> None:
        self.directory = directory
        self.run = run

    def save(self, step: int, module: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Keep a step's checkpoint, aside first, and remove all but the last two."""
        place = self.directory / f"{_NAME}{step:08}"
        weights = {name: weight.detach().contiguous() for name, weight in module.named_parameters()}
        with whole_directory(place) as aside:
            save_file(weights, aside / _WEIGHTS)
            save_file(dict(_optimizer_tensors(module, optimizer)), aside / _OPTIMIZER)
            write_record(aside / _STATE, {"step": step, **state})
            commit(aside, _COMMIT, [_WEIGHTS, _OPTIMIZER, _STATE], run=self.run, step=step)
            shutil.rmtree(place, ignore_errors=True)
        for old in self._steps()[:-_KEPT]:
            shutil.rmtree(old)

    def load(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
        """Bring a module and its optimizer to the last checkpoint that is whole; its state, or None without one."""
        for place in reversed(self._steps()):
            step = int(place.name.removeprefix(_NAME))
            if damage := damage_of(place, _COMMIT, run=self.run, step=step):
                info(f"checkpoint {place} is not used: {damage}; an earlier one is, or else the run begins anew")
                continue
            _load_weights(module, load_file(place / _WEIGHTS))
            _load_optimizer(module, optimizer, load_file(place / _OPTIMIZER))
            return read_record(place / _STATE)
        return None

    def _steps(self) -> list[Path]:
        return sorted(self.directory.glob(f"{_NAME}{'[0-9]' * 8}"))


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
            # As AdamW has it: the count of steps stays on the CPU.
            optimizer.state[weight][key] = value if key == "step" else value.to(weight.device)
