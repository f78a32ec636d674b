"""Export: the student alone, loadable anywhere."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.settings import CaptureSettings
from palenka.export import main
from palenka.ground.command_line import USER_MISTAKE
from palenka.train_student.model.shapes import ModelShape
from palenka.train_student.settings import TrainSettings
from palenka.train_student.train import train


@pytest.fixture
def finished(capture_settings: CaptureSettings, make_shape: Callable[..., ModelShape], tmp_path: Path) -> Path:
    """A short run with a hidden term."""
    capture(CaptureSettings.model_validate(capture_settings.as_plain() | {"hidden": {"positions": 2}}))
    settings = TrainSettings.model_validate(
        {
            "corpus": capture_settings.corpus,
            "output": tmp_path / "run",
            "model": make_shape(),
            "windows": capture_settings.windows,
            "fraction": 0.05,
            "teachers": {"t": {"cache": capture_settings.output}},
            "objective": {"hidden": 0.3},
            "checkpoint_every": 1,
        }
    )
    train(settings)
    return settings.output


def test_an_export_is_the_model_and_its_tokenizer_without_projections(finished: Path, tmp_path: Path) -> None:
    assert (finished / "projections.safetensors").is_file()
    assert main([str(finished), "--out", str(tmp_path / "exported")]) == 0
    names = {path.name for path in (tmp_path / "exported").iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    kept, exported = (load_file(place / "model.safetensors") for place in (finished, tmp_path / "exported"))
    assert kept.keys() == exported.keys()
    assert all(torch.equal(kept[name], exported[name]) for name in kept)
    assert AutoTokenizer.from_pretrained(tmp_path / "exported")("the teacher").input_ids


def test_an_export_in_another_type_is_rounded_once(finished: Path, tmp_path: Path) -> None:
    assert main([str(finished), "--out", str(tmp_path / "half"), "--dtype", "bf16"]) == 0
    exact = load_file(finished / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype="auto")
    for name, weight in model.named_parameters():
        assert torch.equal(weight, exact[name].bfloat16())


def test_a_tokenizer_can_open_texts_by_itself(finished: Path, tmp_path: Path) -> None:
    ids = []
    for name, choice in (("plain", "false"), ("opened", "true")):
        assert main([str(finished), "--out", str(tmp_path / name), "--add_bos", choice]) == 0
        ids.append(AutoTokenizer.from_pretrained(tmp_path / name)("the teacher").input_ids)
    assert ids[1] == [1, *ids[0]]


def test_what_cannot_be_exported_is_refused(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--out", str(tmp_path / "x")]) == USER_MISTAKE
    assert "is not a finished run" in capsys.readouterr().err
    assert main([str(finished), "--out", str(finished)]) == USER_MISTAKE
    assert "exists; delete it or choose another --out" in capsys.readouterr().err
    assert main([str(finished)]) == USER_MISTAKE
    assert "these options are missing: out" in capsys.readouterr().err
