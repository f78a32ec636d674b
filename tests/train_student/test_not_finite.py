"""NaN and infinity: a run stops at the next line of its log, and says which step, term and window, and whose side."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from accelerate import Accelerator
from torch import Tensor

from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.settings import CaptureSettings
from palenka.data.corpus import Corpus
from palenka.data.signals.stream import ReadingOrder
from palenka.ground.errors import UserError
from palenka.ground.records import commit, read_record
from palenka.train_student.meter import GRADIENT, Meter, NotFinite
from palenka.train_student.objective.divergences import DIVERGENCES, Divergence
from palenka.train_student.settings import TrainSettings
from palenka.train_student.train import train


@pytest.fixture
def settings(
    capture_settings: CaptureSettings,
    changed: Callable[..., CaptureSettings],
    student_of_cache: Callable[..., TrainSettings],
) -> TrainSettings:
    """20 steps with a cached teacher, logged seldom; the cache keeps logits as float32."""
    capture(changed(capture_settings, logits={"kind": "topk", "k": 8, "values": "float32"}, fraction=0.3))
    return student_of_cache(
        fraction=0.3,
        objective={"hard": 0.5, "logit": 0.5},
        micro_batch=4,
        optimizer={"learning_rate": 3e-3},
        log_every=10,
    )


def spoil(cache: Path, slot: int) -> None:
    """Put a NaN where a writer with a mistake would have: the checksums fit it."""
    group: Any = zarr.open_group(cache, mode="r+")
    group["logits/values"][0, slot, 3, 0] = np.nan
    record = read_record(cache / "commits/0-0.json")
    facts = {name: value for name, value in record.items() if name not in ("files", "checksum")}
    commit(cache, "commits/0-0.json", record["files"], **facts)


def test_a_nan_in_a_cache_is_named_by_step_term_and_window(
    settings: TrainSettings, log_of: Callable[..., list[dict[str, Any]]]
) -> None:
    cache = settings.teachers["t"].cache
    assert cache is not None
    corpus = Corpus.open(settings.corpus, "train")
    order = ReadingOrder(settings.windows, len(corpus.tokens), settings.seed, 1, 0.3, batch=16)
    ((view, slots, indices),) = order.pieces(3 * 16, 4 * 16)  # what step 4 reads
    spoil(cache, int(slots[6]))
    with pytest.raises(UserError) as stop:
        train(settings)
    told = str(stop.value)
    assert told.startswith("term logit/t is not finite at step 4, and it came from the teacher's side: t gives numbers")
    assert f"for window {indices[6]} of view {view}; capture {cache} again" in told
    assert not (settings.output / "result.json").exists()
    assert [line["step"] for line in log_of(settings, "loss")] == [1]


def test_a_student_that_overflows_is_told_from_its_teachers(settings: TrainSettings) -> None:
    wild = settings.model_copy(update={"optimizer": settings.optimizer.model_copy(update={"learning_rate": 1e30})})
    with pytest.raises(UserError) as stop:
        train(wild)
    told = str(stop.value)
    assert "is not finite at step 2, in window" in told
    assert told.count("of view 0") == 1
    assert "it came from the student's side; lower optimizer.learning_rate (1e+30)" in told


def test_a_gradient_alone_is_named_with_all_windows_of_its_step(
    settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cusp(_teacher: Tensor, student: Tensor) -> Tensor:
        """0, whose gradient is infinite."""
        return (student - student.detach()).sqrt().sum(-1)

    monkeypatch.setitem(DIVERGENCES._entries, "reverse", Divergence(cusp))
    objective = settings.objective.model_copy(update={"divergence": "reverse"})
    corpus = Corpus.open(settings.corpus, "train")
    order = ReadingOrder(settings.windows, len(corpus.tokens), settings.seed, 1, 0.3, batch=16)
    ((_, _, indices),) = order.pieces(0, 16)
    with pytest.raises(UserError) as stop:
        train(settings.model_copy(update={"objective": objective}))
    told = str(stop.value)
    assert told.startswith("the gradient is not finite at step 1, in windows ")
    shown = re.search(r"windows ([\d, ]+) and (\d+) more of view 0", told)
    assert shown
    named = [int(number) for number in shown[1].split(", ")]
    assert named == indices[: len(named)].tolist()
    assert len(named) + int(shown[2]) == 16
    assert "and it came from the student's side" in told


def test_no_checkpoint_is_written_of_weights_that_are_not_finite(settings: TrainSettings) -> None:
    optimizer = settings.optimizer.model_copy(update={"learning_rate": 1e30})
    wild = settings.model_copy(update={"optimizer": optimizer, "checkpoint_every": 3, "log_every": 100})
    with pytest.raises(UserError, match="is not finite at step 2"):
        train(wild)
    assert not (settings.output / "checkpoints").exists()


def test_the_meter_remembers_the_first_micro_batch_and_prefers_a_term_to_the_loss() -> None:
    meter = Meter(Accelerator(cpu=True))
    assert meter.not_finite() is None
    one, bad = torch.tensor(1.0), torch.tensor(float("inf"))
    for number, (loss, hard) in enumerate([(one, one), (bad, bad), (bad, one)]):
        meter.add({"loss": loss, "hard": hard}, 8, number)
    assert meter.not_finite() == NotFinite("hard", 1, 0)
    other = Meter(Accelerator(cpu=True))
    other.add({"loss": one, "hard": one}, 8, 0)
    assert other.not_finite() is None
    other.add_gradient(torch.tensor(float("nan")), 3)
    assert other.not_finite() == NotFinite(GRADIENT, 3, 0)
