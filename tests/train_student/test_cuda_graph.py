"""Passes that are recorded once and repeated: the same training, and refused where nothing can be recorded.

Here is no GPU. In place of a graph, a CPU's operators are recorded, and computed again into the same memory. As in a
graph, numbers of the host, shapes and addresses are those of the recording; what it computed itself is lost.
"""

import contextlib
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.settings import CaptureSettings
from palenka.ground.errors import UserError
from palenka.train_student import train as training
from palenka.train_student import trainer
from palenka.train_student.run_facts import RunResult
from palenka.train_student.settings import TrainSettings
from palenka.train_student.train import train
from palenka.train_student.trainer import Trainer

EVERY_TERM = {"hard": 0.5, "logit": 0.5, "hidden": 0.1, "contrastive": 0.1, "auxiliary": 0.1, "temperature": 1.0}


class RecordedOperators:
    """Stands for `torch.cuda.CUDAGraph`."""

    made: "list[RecordedOperators]" = []  # noqa: RUF012 - a list of the test's own replaces it

    def __init__(self) -> None:
        self.operators: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0
        self.made.append(self)

    def replay(self) -> None:
        self.replays += 1
        with torch.no_grad():
            for operator, given, named, results in self.operators:
                again = tree_leaves(operator(*given, **named))
                for old, new in zip(tree_leaves(results), again, strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)

    def forget(self) -> None:
        """Overwrite what the recording computed: only a replay computes."""
        for _, given, named, results in self.operators:
            known = {_memory(part) for part in tree_leaves((given, named)) if isinstance(part, Tensor)}
            for part in tree_leaves(results):
                if isinstance(part, Tensor) and part.is_floating_point() and _memory(part) not in known:
                    part.detach().fill_(torch.nan)


def _memory(part: Tensor) -> int:
    return part.untyped_storage().data_ptr()


class _Recorder(TorchDispatchMode):
    def __init__(self, recorded: RecordedOperators) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorded = recorded

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        self.recorded.operators.append((func, args, kwargs or {}, results))
        return results


@contextlib.contextmanager
def recording(recorded: RecordedOperators, **_: object) -> Iterator[None]:
    """Stands for `torch.cuda.graph`. On a GPU a recording computes nothing, and draws nothing."""
    drawn = torch.get_rng_state()
    with _Recorder(recorded):
        yield
    torch.set_rng_state(drawn)
    recorded.forget()


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[RecordedOperators]:
    """All that is recorded in a test, on a CPU that asks for no numbers, as a GPU does."""
    made: list[RecordedOperators] = []
    monkeypatch.setattr(RecordedOperators, "made", made)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", RecordedOperators)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    monkeypatch.setattr(training, "require_graphs", lambda *_: None)
    monkeypatch.setattr(trainer, "is_alone_on_gpu", lambda _: True)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    return made


@pytest.fixture
def both(
    student_of_cache: Callable[..., TrainSettings], log_of: Callable[..., list[dict[str, Any]]], tmp_path: Any
) -> Callable[..., None]:
    """Trains the same run plainly and with recorded passes, and compares logs and weights, bit by bit."""

    def compare(**changes: object) -> None:
        logs, weights = [], []
        for graphs in (False, True):
            output = tmp_path / f"graphs-{graphs}"
            settings = student_of_cache(output=output, cuda_graphs=graphs, compile=False, log_every=1, **changes)
            train(settings)
            logs.append(log_of(settings))
            weights.append(load_file(next(output.glob("**/model.safetensors"))))
        assert logs[0] == logs[1]
        assert weights[0].keys() == weights[1].keys()
        assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())

    return compare


@pytest.mark.parametrize("kind", ["low_rank", "hybrid"])
def test_recorded_passes_train_as_plain_ones_do(
    kind: str,
    hidden_capture: CaptureSettings,
    changed: Callable[..., CaptureSettings],
    both: Callable[..., None],
    recorded: list[RecordedOperators],
) -> None:
    captured = changed(hidden_capture, logits={"kind": kind})
    capture(captured)
    teachers = {"t": {"cache": captured.output}}
    both(teachers=teachers, objective=EVERY_TERM, fraction=0.4, global_batch=8, micro_batch=8)
    (one,) = recorded
    assert one.replays > 3


def test_a_live_teacher_is_recorded_with_its_student(
    make_teacher: Callable[..., Any],
    make_shape: Callable[..., Any],
    both: Callable[..., None],
    recorded: list[RecordedOperators],
) -> None:
    live = {"t": {"source": "live", "model": make_teacher("llama", 3), "hidden": {"positions": 5}}}
    objective = {"hard": 0.5, "logit": 0.5, "hidden": 0.1}
    both(model=make_shape("gpt2"), teachers=live, objective=objective, fraction=0.3, global_batch=8, micro_batch=8)
    assert recorded


def test_recorded_gradients_of_several_micro_batches_add_up(
    hidden_capture: CaptureSettings, both: Callable[..., None], recorded: list[RecordedOperators]
) -> None:
    capture(hidden_capture)
    both(objective=EVERY_TERM, fraction=0.6, global_batch=16, micro_batch=4, gradient_ratios_every=3)
    assert sum(one.replays for one in recorded) > 8


def test_weights_that_move_are_recorded_when_they_stand_still(
    hidden_capture: CaptureSettings, both: Callable[..., None], recorded: list[RecordedOperators]
) -> None:
    capture(hidden_capture)
    objective = {"hard": 0.5, "logit": {"weight": 0.5, "schedule": {"start": 0.1, "steps": 4}}}
    both(objective=objective, fraction=0.6, global_batch=16, micro_batch=2)  # more micro-batches than are plain
    (one,) = recorded
    assert one.replays > 0


def test_a_trainer_is_freed_with_its_run(
    hidden_capture: CaptureSettings,
    student_of_cache: Callable[..., TrainSettings],
    recorded: list[RecordedOperators],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    capture(hidden_capture)
    seen: list[weakref.ref[Trainer]] = []
    fit = Trainer.fit

    def remembered(trainer: Trainer) -> RunResult:
        seen.append(weakref.ref(trainer))
        return fit(trainer)

    monkeypatch.setattr(Trainer, "fit", remembered)
    gc.collect()
    gc.disable()
    try:
        train(student_of_cache(cuda_graphs=True, compile=False, fraction=0.2, global_batch=8, micro_batch=8))
        assert recorded
        assert seen[0]() is None
    finally:
        gc.enable()


def test_dropout_draws_anew_in_every_replay(
    hidden_capture: CaptureSettings,
    both: Callable[..., None],
    make_shape: Callable[..., Any],
    recorded: list[RecordedOperators],
) -> None:
    capture(hidden_capture)
    both(model=make_shape("gpt2", dropout=0.2), objective={"hard": 1.0}, teachers={}, fraction=0.3, micro_batch=8)
    assert recorded


def test_graphs_are_refused_without_a_gpu(student_of_cache: Callable[..., TrainSettings]) -> None:
    with pytest.raises(
        UserError, match=r"cuda_graphs is true, but this run has 1 process\(es\) on cpu.*set it to false"
    ):
        train(student_of_cache(cuda_graphs=True, device="cpu"))
