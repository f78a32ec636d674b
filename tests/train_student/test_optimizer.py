"""The optimizer's steps against AdamW and clipping written out in float64, and the seeds of dropout."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.settings import CaptureSettings
from palenka.train_student.model.shapes import ModelShape
from palenka.train_student.optimizer import adamw, gradients_added
from palenka.train_student.settings import TrainSettings
from palenka.train_student.train import train
from palenka.train_student.trainer import Trainer

RATE, WARMUP, DECAY, BETA1, BETA2, EPSILON = 1e-2, 2, 0.5, 0.8, 0.95, 1e-8

Look = Callable[[Trainer], None]


class EnoughError(Exception):
    """Ends a run after what was to be seen of it."""


@pytest.fixture
def look_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[TrainSettings, Look], None]:
    """Gives the trainer of a run, in place of its loop."""

    def look(settings: TrainSettings, at: Look) -> None:
        def fit(trainer: Trainer) -> None:
            at(trainer)
            raise EnoughError

        monkeypatch.setattr(Trainer, "fit", fit)
        with pytest.raises(EnoughError):
            train(settings)

    return look


@pytest.fixture
def settings(
    hidden_capture: CaptureSettings,
    student_of_cache: Callable[..., TrainSettings],
    make_shape: Callable[..., ModelShape],
) -> Callable[..., TrainSettings]:
    """A student with norms, biases and projections, and two micro-batches in a step."""
    capture(hidden_capture)

    def make(max_grad_norm: float) -> TrainSettings:
        optimizer = {
            "learning_rate": RATE,
            "warmup_steps": WARMUP,
            "weight_decay": DECAY,
            "beta1": BETA1,
            "beta2": BETA2,
            "max_grad_norm": max_grad_norm,
        }
        objective = {"hard": 1.0, "hidden": 0.5}
        model = make_shape("gpt2", dropout=0.2)
        return student_of_cache(model=model, objective=objective, optimizer=optimizer, micro_batch=8, fraction=0.1)

    return make


class _WrittenOut:
    """AdamW (Loshchilov and Hutter 2019, algorithm 2) in float64, one weight after the other."""

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        self.weights = {name: weight.detach().double() for name, weight in named.items()}
        self.means = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}
        self.squares = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}

    def step(self, number: int, rate: float, gradients: dict[str, Tensor]) -> None:
        for name, gradient in gradients.items():
            weight = self.weights[name]
            decay = DECAY if weight.dim() == 2 else 0.0
            self.means[name] = BETA1 * self.means[name] + (1 - BETA1) * gradient
            self.squares[name] = BETA2 * self.squares[name] + (1 - BETA2) * gradient**2
            mean = self.means[name] / (1 - BETA1**number)
            square = self.squares[name] / (1 - BETA2**number)
            self.weights[name] = weight - rate * decay * weight - rate * mean / (square.sqrt() + EPSILON)


def norm_of(gradients: dict[str, Tensor]) -> float:
    return math.sqrt(math.fsum(float((gradient**2).sum()) for gradient in gradients.values()))


@pytest.mark.parametrize("most", [0.05, 100.0], ids=["clipped", "whole"])
def test_three_steps_are_those_of_adamw_and_clipping_in_float64(
    settings: Callable[..., TrainSettings], look_at: Callable[[TrainSettings, Look], None], most: float
) -> None:
    def compare(trainer: Trainer) -> None:
        named = dict(trainer.objective.named_parameters())
        beside = {name for name in named if not name.startswith("student.")}
        vectors = {name for name, weight in named.items() if weight.dim() < 2}
        assert beside
        assert any("ln_" in name for name in vectors)  # norms
        assert any(name.endswith(("attn.bias", "fc.bias")) for name in vectors)
        expected = _WrittenOut(named)
        batches = trainer.reading.batches(1)
        steps = trainer.num_steps
        for number in range(1, 4):
            weights = trainer.settings.weights(number, steps)
            for place in range(trainer.reading.num_micro_batches):
                trainer.learn(next(batches), weights, is_last=place == trainer.reading.num_micro_batches - 1)
            gradients = {name: weight.grad.double() for name, weight in named.items() if weight.grad is not None}
            assert gradients.keys() == named.keys()
            clipped: dict[str, Tensor] = {}
            for part in (beside, named.keys() - beside):
                mine = {name: gradients[name] for name in part}
                norm = norm_of(mine)
                assert (norm > most) == (most == 0.05)
                clipped |= {name: gradient * min(1.0, most / norm) for name, gradient in mine.items()}
            told = trainer.update(number)
            assert float(told) == pytest.approx(norm_of({n: g for n, g in gradients.items() if n not in beside}))
            progress = (number - WARMUP) / (steps + 1 - WARMUP)
            share = number / WARMUP if number <= WARMUP else (1 + math.cos(math.pi * progress)) / 2
            expected.step(number, RATE * share, clipped)
            for name, weight in named.items():
                torch.testing.assert_close(weight.detach().double(), expected.weights[name], rtol=1e-5, atol=2e-6)

    look_at(settings(most), compare)


def test_dropout_draws_other_masks_in_every_process_and_step(
    settings: Callable[..., TrainSettings],
    look_at: Callable[[TrainSettings, Look], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: dict[tuple[int, int], tuple[float, ...]] = {}

    def draw(trainer: Trainer) -> None:
        dropout = torch.nn.Dropout(0.5)
        for process in (0, 1):
            monkeypatch.setattr(Accelerator, "process_index", process)
            for step in (1, 2, 1):
                trainer._seed(step)
                mask = tuple(dropout(torch.ones(64)).tolist())
                assert drawn.setdefault((process, step), mask) == mask

    look_at(settings(1.0), draw)
    assert len(set(drawn.values())) == 4


class _Operations(TorchDispatchMode):
    """Counts what is handed over, one for all tensors that an operation is given."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_a_gpus_update_takes_as_few_operations_for_many_weights_as_for_few(
    look_at: Callable[[TrainSettings, Look], None],
    student_of_cache: Callable[..., TrainSettings],
    make_shape: Callable[..., ModelShape],
    tmp_path: Path,
) -> None:
    counts = []

    def update(trainer: Trainer) -> None:
        trainer.adamw = adamw(trainer.objective, trainer.settings.optimizer, torch.device("cuda"))  # fused, as there
        trainer.optimizer = trainer.accelerator.prepare_optimizer(trainer.adamw)
        for step in (1, 2):  # the first one makes room for the moments
            for parameter in trainer.objective.parameters():
                parameter.grad = torch.randn_like(parameter)
            with _Operations() as operations:
                trainer.update(step)
        counts.append(operations.count)
        assert all(parameter.grad is None for parameter in trainer.objective.parameters())

    for depth in (1, 4):
        model = make_shape("gpt2", num_hidden_layers=depth)
        output = tmp_path / str(depth)
        look_at(student_of_cache(model=model, teachers={}, objective={"hard": 1.0}, output=output), update)
    assert counts[0] == counts[1] < 40


def test_gradients_of_several_passes_are_added_all_at_once(normal: Callable[..., Tensor]) -> None:
    model = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(5)))
    model.register_parameter("unused", torch.nn.Parameter(torch.zeros(3)))
    batches = [normal(seed, 4, 8) for seed in range(3)]
    for batch in batches:
        model(batch).square().sum().backward()
    expected = {name: weight.grad for name, weight in model.named_parameters()}
    model.zero_grad()
    with torch.profiler.profile() as recorder:
        for batch in batches:
            with gradients_added(model.parameters()):
                model(batch).square().sum().backward()
    for name, weight in model.named_parameters():
        wanted = expected[name]
        assert (weight.grad is None) == (wanted is None)
        assert wanted is None or (weight.grad is not None and torch.equal(weight.grad, wanted))
    names = [event.name for event in recorder.events() or [] if event.cpu_parent is None or "Accumulate" in event.name]
    assert names.count("aten::_foreach_add_") == 2
