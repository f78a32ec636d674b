"""On a GPU: nothing waits, and what is computed there is what a CPU computes. `pytest -m gpu`; skipped without CUDA."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from palenka.cache_teachers.capture import capture, manifest_of
from palenka.cache_teachers.settings import CaptureSettings
from palenka.cache_teachers.shard_in_memory import ShardInMemory
from palenka.cache_teachers.teacher import Teacher
from palenka.data.corpus import Corpus
from palenka.data.signals.cache import TeacherCache
from palenka.data.signals.store import read_manifest
from palenka.ground.stopping import Stopped
from palenka.train_student.settings import TrainSettings
from palenka.train_student.train import train
from palenka.train_student.trainer import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU (cuda)"),
    pytest.mark.filterwarnings("default"),
]

CUDA = torch.device("cuda")
KINDS = ("topk", "low_rank", "sampled", "hybrid")
EVERY_TERM = {"hard": 0.5, "logit": 0.5, "hidden": 0.1, "contrastive": 0.1, "auxiliary": 0.1, "temperature": 1.0}


@pytest.fixture
def no_waiting() -> Callable[[], Any]:
    """Where torch raises if the host waits for the device."""
    from contextlib import contextmanager

    @contextmanager
    def waits_for_nothing() -> Iterator[None]:
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return waits_for_nothing


@pytest.fixture
def watched_step(no_waiting: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of every run on the GPU, the third, may wait for nothing."""
    step = Trainer._step

    def watched(trainer: Trainer, number: int, batches: Any) -> None:
        if number != 3 or trainer.accelerator.device.type != "cuda":
            return step(trainer, number, batches)
        with no_waiting():
            return step(trainer, number, batches)

    monkeypatch.setattr(Trainer, "_step", watched)


@pytest.fixture
def capture_of(settings_of_capture: Callable[..., CaptureSettings], tmp_path: Path) -> Callable[..., CaptureSettings]:
    """Settings of a capture with hidden states, by the kind of its logits and the device."""

    def make(kind: str, device: str = "cuda", **changes: object) -> CaptureSettings:
        hidden = {"positions": 5, "components": None, "sample_windows": 40}
        fields = {"logits": {"kind": kind}, "hidden": hidden, "device": device, "compile": False}
        return settings_of_capture(**({"output": tmp_path / f"{kind}-{device}"} | fields | changes))

    return make


def losses_of(settings: TrainSettings) -> list[float]:
    train(settings)
    lines = [json.loads(line) for line in (settings.output / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def losses_by(
    option: str, values: Sequence[str], make: Any, captured: CaptureSettings, changes: Mapping[str, Any]
) -> dict[str, list[float]]:
    """Losses of a student of a cache, by the value of one of its options; on the GPU, and plain, unless that is it."""
    fields = {"teachers": {"t": {"cache": captured.output}}, "fraction": 0.2, "device": "cuda", "compile": "false"}
    return {
        value: losses_of(make(**{**fields, **changes, "output": changes["output"] / value, option: value}))
        for value in values
    }


@pytest.mark.usefixtures("watched_step")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("divergence", ["forward", "reverse", "js"])
def test_a_step_waits_for_nothing_and_every_term_is_that_of_a_cpu(
    kind: str,
    divergence: str,
    capture_of: Any,
    student_of_cache: Any,
    tmp_path: Path,
) -> None:
    if kind in ("sampled", "hybrid") and divergence != "forward":
        pytest.skip("draws serve forward KL alone")
    captured = capture_of(kind, "cpu")
    capture(captured)
    changes = {"output": tmp_path, "objective": EVERY_TERM | {"divergence": divergence}, "micro_batch": 8}
    found = losses_by("device", ("cpu", "cuda"), student_of_cache, captured, changes)
    assert found["cuda"] == pytest.approx(found["cpu"], rel=2e-3)


@pytest.mark.usefixtures("watched_step")
@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_step_waits_for_nothing_and_is_the_plain_one(
    kind: str, capture_of: Any, student_of_cache: Any, tmp_path: Path
) -> None:
    captured = capture_of(kind, "cpu")
    capture(captured)
    scheduled = EVERY_TERM | {"logit": {"weight": 0.5, "schedule": {"start": 0.1}}}
    changes = {"output": tmp_path, "objective": scheduled, "micro_batch": 8}
    found = losses_by("compile", ("false", "true"), student_of_cache, captured, changes)
    assert found["true"] == pytest.approx(found["false"], rel=2e-3)


@pytest.mark.parametrize("compiled", ["false", "true"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_recorded_steps_are_the_plain_ones(
    compiled: str,
    precision: str,
    capture_of: Any,
    student_of_cache: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replays: list[torch.cuda.CUDAGraph] = []
    replay = torch.cuda.CUDAGraph.replay

    def counted(graph: torch.cuda.CUDAGraph) -> None:
        replays.append(graph)
        replay(graph)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", counted)
    captured = capture_of("low_rank", "cpu")
    capture(captured)
    changes = {"output": tmp_path, "objective": EVERY_TERM | {"auxiliary": 0.0}, "global_batch": 16, "micro_batch": 8}
    changes |= {"precision": precision, "compile": compiled, "log_every": 1, "optimizer": {"learning_rate": 0.01}}
    losses_by("cuda_graphs", ("false", "true"), student_of_cache, captured, changes)
    assert len(replays) > 10
    plain, recorded = (
        [json.loads(line) for line in (tmp_path / word / "metrics.jsonl").read_text().splitlines()]
        for word in ("false", "true")
    )
    # A micro-batch whose gradient is lost halves the norm, though losses barely move.
    for name, rel in (("loss", 2e-3), ("gradient_norm", 5e-2)):
        found, expected = ([line[name] for line in lines if name in line] for lines in (recorded, plain))
        assert found == pytest.approx(expected, rel=rel if precision == "float32" else 3 * rel)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_as_float32_does(
    precision: str, capture_of: Any, student_of_cache: Any, tmp_path: Path
) -> None:
    captured = capture_of("low_rank")
    capture(captured)
    changes = {"output": tmp_path, "objective": EVERY_TERM, "fraction": 0.3}
    found = losses_by("precision", ("float32", precision), student_of_cache, captured, changes)
    assert found[precision][-1] == pytest.approx(found["float32"][-1], rel=0.03)


@pytest.mark.parametrize("precision", ["float32", "fp16"])
def test_a_run_goes_on(precision: str, student_of_cache: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"teachers": {}, "objective": {"hard": 1.0}, "fraction": 0.3, "precision": precision, "log_every": 1}
    changes |= {"compile": "false"}
    whole = losses_of(student_of_cache(output=tmp_path / "whole", device="cuda", **changes))
    settings = student_of_cache(output=tmp_path / "parts", device="cuda", checkpoint_every=3, **changes)
    step = Trainer._step

    def stopped(trainer: Trainer, number: int, batches: Any) -> None:
        if number == 6:
            raise KeyboardInterrupt
        step(trainer, number, batches)

    monkeypatch.setattr(Trainer, "_step", stopped)
    with pytest.raises((KeyboardInterrupt, Stopped)):
        train(settings)
    monkeypatch.setattr(Trainer, "_step", step)
    assert losses_of(settings) == pytest.approx(whole, rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_capture_waits_for_nothing_and_says_what_a_cpu_says(
    kind: str, capture_of: Any, corpus: Corpus, no_waiting: Any
) -> None:
    settings = capture_of(kind)
    teacher = Teacher(settings, corpus, settings.windows, CUDA)
    manifest = manifest_of(settings, corpus, teacher)
    teacher.measure(8)
    indices = settings.windows.slots(len(corpus.tokens), 0)[:16]
    filled = ShardInMemory(teacher, manifest)
    filled.add(corpus.gather(settings.windows, 0, indices[:8]), 0, indices[:8])
    with no_waiting():
        filled.add(corpus.gather(settings.windows, 0, indices[8:]), 0, indices[8:])
    filled.finish()
    if kind in ("sampled", "hybrid"):
        return  # a rounding error draws another token
    signals = []
    for device in ("cpu", "cuda"):
        captured = capture_of(kind, device)
        capture(captured)
        cache = TeacherCache(captured.output, read_manifest(captured.output).hidden_keys())
        signals.append(cache.read(0, np.arange(32)))
    ours, theirs = signals
    torch.testing.assert_close(ours.at(1.0).log_tail, theirs.at(1.0).log_tail, rtol=0, atol=0.1)
    for key, states in ours.hidden.items():
        torch.testing.assert_close(states, theirs.hidden[key], rtol=0, atol=0.2)
