"""What people write becomes neither a command nor a path elsewhere, and no code beside a model is run."""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from pydantic import ValidationError

from palenka.data.corpus import Corpus
from palenka.data.hub import Located
from palenka.data.model_files import load_model, require_fit
from palenka.eval.__main__ import main as evaluate
from palenka.grid.points import Grid
from palenka.grid.settings import GridSettings, SlurmSettings
from palenka.grid.slurm import array_script
from palenka.ground.command_line import parse_file
from palenka.ground.errors import UserError
from palenka.study import StudySettings


@pytest.mark.parametrize("field", ["partition", "account", "time", "finalists_time", "memory", "gres", "options"])
def test_a_line_break_in_an_option_of_slurm_is_refused(field: str) -> None:
    for text in ("a\nrm -rf x", "a\r\nb", "a\x0bb", "a\u2028b"):
        with pytest.raises(ValidationError, match="a line of text without control characters"):
            SlurmSettings.model_validate({field: [text] if field == "options" else text})


def test_places_with_blanks_are_one_word_of_a_script(
    grid_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my folder").mkdir()
    monkeypatch.chdir(tmp_path / "my folder")
    grid = Grid(*parse_file(GridSettings, ["--config", str(grid_file)], "palenka grid"))
    script = array_script(grid, grid.points, [])
    assert f"#SBATCH '--chdir={tmp_path}/my folder'" in script.splitlines()
    (tmp_path / "a\nwhoami").mkdir()
    monkeypatch.chdir(tmp_path / "a\nwhoami")
    with pytest.raises(UserError, match="has a control character in it"):
        array_script(grid, grid.points, [])


@pytest.mark.parametrize("name", ["..", "../x", "/x", "a/b", ".hidden", "a\nb", "", " ", "x" * 200, "a\\b"])
def test_names_of_a_study_stay_in_its_folder(name: str) -> None:
    for group in ("teachers", "caches", "students"):
        given = {"output": "o", "corpus": "c.yaml", "students": {"s": "s.yaml"}} | {group: {name: "x.yaml"}}
        with pytest.raises(ValidationError, match="a name for a file, without slashes|a path, not empty"):
            StudySettings.model_validate(given)


def test_names_of_points_stay_in_their_grid(grid_file: Path) -> None:
    grid = yaml.safe_load(grid_file.read_text())
    grid["product"] = {"teachers.t.weight": [0.1, 0.2], "device": ["cpu", "auto"]}
    grid_file.write_text(yaml.safe_dump(grid))
    for point in Grid(*parse_file(GridSettings, ["--config", str(grid_file)], "palenka grid")).points:
        assert ".." not in point.name.split("/")
        assert point.name.count("/") == 1


def test_code_beside_a_model_is_never_run(
    make_teacher: Callable[..., Path], corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda _: "y")  # whoever pipes `yes` into it
    model = tmp_path / "model"
    shutil.copytree(make_teacher("llama", seed=3), model)
    marker = tmp_path / "ran"
    (model / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Config: ...\nclass Model: ...\n")
    config = json.loads((model / "config.json").read_text())
    auto = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.Model", None]}
    given = [str(model), "--data", str(corpus.directory), "--out", str(tmp_path / "x.json"), "--length", "16"]
    for kind, refusal in (("llama", contextlib.nullcontext()), ("evil", pytest.raises(UserError))):
        (model / "config.json").write_text(json.dumps(config | {"model_type": kind, "auto_map": auto}))
        # A kind that transformers knows is read by its own class, another one not at all.
        with refusal:
            require_fit("teacher", Located(model, model), corpus, 16)
        with refusal:
            load_model(model, torch.device("cpu"))
        assert evaluate(given) == (0 if kind == "llama" else 2)
    assert not marker.exists()
