"""The processes and their device: what is chosen, and what of the environment is refused."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import PartialState

from palenka.ground.errors import UserError
from palenka.ground.processes import open_processes


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    PartialState._reset_state()
    yield
    PartialState._reset_state()


def test_a_device_that_is_there_is_chosen_and_kept() -> None:
    assert open_processes("cpu").device == torch.device("cpu")
    assert open_processes().device == torch.device("cpu")
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert open_processes("auto").device.type == best
    assert open_processes().device.type == best


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"device is cuda, but torch finds only .*cpu here; choose .*cpu, or auto"):
        open_processes("cuda")


def test_a_mac_computes_on_its_gpu_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert open_processes("auto").device == torch.device("mps")
    assert open_processes("cpu").device == torch.device("cpu")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert open_processes("auto").device == torch.device("cpu")
    with pytest.raises(UserError, match="device is mps, but ACCELERATE_USE_CPU is set; choose cpu, or auto"):
        open_processes("mps")


def test_processes_that_do_not_see_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    open_processes("cpu")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=re.escape("2 process(es) were launched for cpu, but this one sees 1 on cpu")):
        open_processes("cpu")


@pytest.mark.parametrize(
    "given",
    [
        {"ACCELERATE_USE_DEEPSPEED": "true"},
        {"ACCELERATE_USE_FSDP": "True"},
        {"ACCELERATE_USE_MEGATRON_LM": "true"},
        {"ACCELERATE_USE_PARALLELISM_CONFIG": "true"},
        {"ACCELERATE_MIXED_PRECISION": "fp8"},
        {"ACCELERATE_TORCH_DEVICE": "cuda:1"},
        {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"},
    ],
    ids=str,
)
def test_an_environment_that_would_compute_otherwise_is_refused(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ((name, value),) = given.items()
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"{name} is {value} in the environment, but settings alone decide"):
        open_processes("cpu")
