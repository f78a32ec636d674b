"""No waiting: an ordinary step, and a capture within a shard, never ask the device for anything.

Here is no GPU, and on a CPU nothing waits. So the models are put on the device "meta", whose tensors have no numbers:
whoever looks at one fails. Copies that would wait, though nobody looks, are found as they are dispatched. (A fake CUDA
device has no gradients in a torch without CUDA: it ends the process.) With a GPU at hand, torch says itself who waits.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from palenka.cache_teachers import capture as capturing
from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.settings import CaptureSettings
from palenka.cache_teachers.shard_in_memory import ShardInMemory
from palenka.cache_teachers.teacher import Teacher
from palenka.train_student.meter import Meter
from palenka.train_student.optimizer import adamw
from palenka.train_student.settings import TrainSettings
from palenka.train_student.train import train
from palenka.train_student.trainer import Trainer

aten = torch.ops.aten
META = torch.device("meta")
KINDS = ("topk", "low_rank", "sampled", "hybrid")
ASKS = {
    aten._local_scalar_dense,
    aten.is_nonzero,
    aten.nonzero,
    aten.masked_select,
    aten.equal,
    aten._unique2,
    aten.repeat_interleave,
}
"""Operators whose result the host has to know."""
LISTS = {torch.tensor, torch.as_tensor, Tensor.new_tensor}
"""What copies a list to the device, and waits for the copy."""
INSERTED: dict[str, Callable[[Tensor], object]] = {
    "cpu": lambda loss: loss.detach().cpu(),
    "item": lambda loss: loss.item(),
    "tolist": lambda loss: loss.tolist(),
    "nonzero": lambda loss: loss.detach().reshape(1).nonzero(),
    "a mask": lambda loss: loss.reshape(1)[loss.reshape(1) > 0],
    "a question": lambda loss: 1 if loss.isfinite() else 0,
    "a list": lambda loss: loss.new_tensor([1.0]),
    "a list on the device": lambda loss: torch.tensor([1.0], device=loss.device),
    "a copy to it": lambda loss: torch.ones(1).to(loss.device),
    "a copy from it": lambda loss: torch.ones(1).copy_(loss.detach().reshape(1)),
}


class WaitsError(AssertionError):
    """The host would wait for the device."""


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        tensors = [part for part in tree_leaves((args, kwargs)) if isinstance(part, Tensor)]
        on_device = [part for part in tensors if part.is_meta]
        if on_device and packet in ASKS:
            raise WaitsError(f"{func} asks the device")
        if packet is aten.index and any(part.is_meta and part.dtype == torch.bool for part in tensors[1:]):
            raise WaitsError("a mask asks the device how many there are")
        if packet is aten._to_copy:
            source, target = tensors[0].device, torch.device(kwargs.get("device") or tensors[0].device)
            if source == META != target or (source != META == target and not kwargs.get("non_blocking")):
                raise WaitsError(f"a copy from {source} to {target} is waited for")
        if packet is aten.copy_ and args[0].device != args[1].device:
            if not (args[2] if len(args) > 2 else kwargs.get("non_blocking")):
                raise WaitsError(f"a copy from {args[1].device} to {args[0].device} is waited for")
            if args[1].is_meta:
                return args[0]
        return func(*args, **kwargs)


class _Lists(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in LISTS and made.is_meta:
            raise WaitsError("a list is copied to the device, and waited for")
        return made


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Fail where the host would wait for the device."""
    with _Operators(), _Lists():  # type: ignore[no-untyped-call]
        yield


class EnoughError(Exception):
    """Ends a run or a capture after what was to be seen of it."""


@pytest.fixture(autouse=True)
def meta_has_no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch knows no autocast for it, not even one that is off."""
    autocast, is_enabled = torch.autocast, torch.is_autocast_enabled

    def off(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return contextlib.nullcontext() if device_type == "meta" else autocast(device_type, *args, **kwargs)

    monkeypatch.setattr(torch, "autocast", off)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind=None: kind != "meta" and is_enabled(kind))


def to_meta(teacher: Teacher) -> None:
    for model in teacher._models.values():
        torch.nn.Module.to(model, META)
    teacher.device = META
    teacher.use(teacher.measured)


def on_meta(monkeypatch: pytest.MonkeyPatch, trainer: Trainer) -> None:
    """Put all that a run has on the device."""
    monkeypatch.setitem(PartialState._shared_state, "device", META)
    AcceleratorState()  # takes it over from there
    trainer.objective.to(META)
    trainer.wrapped = trainer.objective
    trainer.adamw = adamw(trainer.objective, trainer.settings.optimizer, META)
    trainer.optimizer = trainer.accelerator.prepare_optimizer(trainer.adamw)
    for teacher in trainer.reading._teachers.live.values():
        to_meta(teacher)
    trainer.meter = Meter(trainer.accelerator)
    trainer.display = SimpleNamespace(advance=lambda _: None)  # type: ignore[assignment]


@pytest.fixture
def stepped(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the second ordinary step of a run on the device; the first moves there what stays."""

    def run(settings: TrainSettings, look: Callable[[Trainer, Iterator[Any]], None] | None = None) -> None:
        def fit(trainer: Trainer) -> None:
            on_meta(monkeypatch, trainer)
            batches = trainer.reading.batches(2)
            trainer._step(2, batches)
            if look:
                look(trainer, batches)
            else:
                with no_waiting():
                    trainer._step(3, batches)
            raise EnoughError

        monkeypatch.setattr(Trainer, "fit", fit)
        with pytest.raises(EnoughError):
            train(settings)

    return run


@pytest.fixture(scope="module")
def captures(
    settings_of_capture: Callable[..., CaptureSettings], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], CaptureSettings]:
    """Settings of a capture with hidden states, by the kind of its logits."""
    folder = tmp_path_factory.mktemp("caches")

    def make(kind: str) -> CaptureSettings:
        hidden = {"positions": 5, "components": 8, "sample_windows": 40}
        return settings_of_capture(output=folder / kind, logits={"kind": kind}, hidden=hidden, micro_batch=8)

    return make


@pytest.fixture(scope="module")
def cached(captures: Callable[[str], CaptureSettings]) -> dict[str, Path]:
    """A captured cache of every kind of logits."""
    settings = {kind: captures(kind) for kind in KINDS}
    for each in settings.values():
        capture(each)
    return {kind: each.output for kind, each in settings.items()}


@pytest.mark.parametrize("kind", ["topk", "low_rank", "sampled", "hybrid"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_step_with_every_term_waits_for_nothing(
    kind: str, temperature: float, cached: dict[str, Path], student_of_cache: Any, stepped: Any
) -> None:
    if kind in ("sampled", "hybrid") and temperature != 1.0:
        pytest.skip("draws have the temperature that they were made at")
    objective: dict[str, object] = {"hard": 0.5, "logit": 0.5, "hidden": 0.1, "contrastive": 0.1, "auxiliary": 0.1}
    objective["temperature"] = temperature
    teachers = {"t": {"cache": cached[kind]}, "u": {"cache": cached["topk"], "layers": {"1": 1, "2": 2}}}
    stepped(student_of_cache(teachers=teachers, objective=objective, micro_batch=8))


@pytest.mark.parametrize("divergence", ["forward", "reverse", "js"])
@pytest.mark.parametrize("kind", ["topk", "low_rank"])
def test_a_step_with_every_divergence_waits_for_nothing(
    divergence: str, kind: str, cached: dict[str, Path], student_of_cache: Any, stepped: Any
) -> None:
    objective = {
        "hard": 0.5,
        "divergence": divergence,
        "logit": {"weight": 0.5, "schedule": {"start": 0.1}},
        "hidden": {"weight": 0.1, "distance": "cosine"},
    }
    stepped(student_of_cache(teachers={"t": {"cache": cached[kind]}}, objective=objective))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_step_with_a_live_teacher_or_none_waits_for_nothing(
    architecture: str,
    make_teacher: Callable[..., Path],
    make_shape: Callable[..., Any],
    student_of_cache: Any,
    stepped: Any,
    tmp_path: Path,
) -> None:
    model = make_shape(architecture, dropout=0.1)
    live = {"t": {"source": "live", "model": make_teacher(architecture, 3), "hidden": {"positions": 5}}}
    stepped(student_of_cache(model=model, teachers=live, objective={"hard": 0.5, "logit": 0.5, "hidden": 0.1}))
    alone = {"teachers": {}, "objective": {"hard": 1.0}, "output": tmp_path / "alone"}
    stepped(student_of_cache(model=model, **alone))


@pytest.mark.parametrize("kind", KINDS)
def test_a_capture_waits_for_nothing_within_a_shard(
    kind: str, captures: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_at = _captured(captures(kind), tmp_path, monkeypatch)
    look_at(lambda _: None)


def test_what_waits_is_found_in_a_step(cached: dict[str, Path], student_of_cache: Any, stepped: Any) -> None:
    def look(trainer: Trainer, batches: Iterator[Any]) -> None:
        forward, missed = trainer.objective.forward, []
        for name, inserted in INSERTED.items():

            def waits(*args: Any, inserted: Callable[[Tensor], object] = inserted) -> Any:
                loss, terms = forward(*args)
                inserted(loss)
                return loss, terms

            trainer.objective.forward = waits  # type: ignore[method-assign, assignment]
            try:
                with no_waiting():
                    trainer._step(3, batches)
            except (WaitsError, NotImplementedError, RuntimeError):
                continue
            missed.append(name)
        assert missed == []

    stepped(student_of_cache(teachers={"t": {"cache": cached["topk"]}}, objective={"hard": 0.5, "logit": 0.5}), look)


def test_what_waits_is_found_in_a_capture(captures: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look_at = _captured(captures("low_rank"), tmp_path, monkeypatch)
    with pytest.raises((WaitsError, NotImplementedError, RuntimeError)):
        look_at(lambda said: said.cpu())


def _captured(
    settings: CaptureSettings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[Tensor], object]], None]:
    """Captures a second micro-batch on the device, with something inserted that sees each array of the logits."""

    def look_at(inserted: Callable[[Tensor], object]) -> None:
        def two(shards: Any, corpus: Any, teacher: Teacher, writer: Any, *_: Any, **__: Any) -> None:
            to_meta(teacher)
            shard, rule = shards[0], writer.manifest.windows
            indices = rule.slots(len(corpus.tokens), shard.view)[shard.start : shard.stop][:16]
            filled = ShardInMemory(teacher, writer.manifest)
            with no_waiting():
                filled.add(corpus.gather(rule, shard.view, indices[:8]), shard.view, indices[:8])
            encode = teacher.encode

            def encode_and_look(*args: Any) -> Any:
                arrays, codes = encode(*args)
                for part in arrays.values():
                    inserted(part)
                return arrays, codes

            monkeypatch.setattr(teacher, "encode", encode_and_look)
            with no_waiting():
                filled.add(corpus.gather(rule, shard.view, indices[8:]), shard.view, indices[8:])
            raise EnoughError

        monkeypatch.setattr(capturing, "capture_shards", two)
        with pytest.raises(EnoughError):
            capture(settings.model_copy(update={"output": folder / "cache"}))

    return look_at
