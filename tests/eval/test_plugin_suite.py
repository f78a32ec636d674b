"""A suite of a user's own, one file: measured, exported, compared, and ranked by, like ours."""

import json
import math
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import binomtest
from transformers import AutoModelForCausalLM, AutoTokenizer

from palenka.eval.__main__ import main
from palenka.eval.results import read_results
from palenka.eval.suites import SUITES
from palenka.grid.settings import GridSettings
from palenka.ground.errors import UserError
from palenka.report.sources import find_sources
from palenka.report.write import write_report
from palenka.study import StudySettings

NOUNS = ("teacher", "student", "river", "stone", "garden", "token", "window", "lantern")


@pytest.fixture
def plugin(plug_in: Callable[..., None]) -> None:
    """The module with the suite, imported as `--plugins last_word` does."""
    plug_in(Path(__file__).parents[1] / "plugins", "last_word")


def greedy_last_word(directory: Path, text: str) -> bool:
    """Whether each token of the last word is the likeliest, one at a time, in float64."""
    model: Any = AutoModelForCausalLM.from_pretrained(directory).double().eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    before = tokenizer(text[: text.rindex(" ")], add_special_tokens=False)["input_ids"]
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    for place in range(len(before), len(whole)):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([whole[:place]])).logits[0, -1]
        if int(logits.argmax()) != whole[place]:
            return False
    return True


@pytest.fixture
def data(teacher: Path, tmp_path: Path) -> Path:
    """Texts of two tasks; some end in the word that the teacher would choose."""
    model: Any = AutoModelForCausalLM.from_pretrained(teacher)
    tokenizer: Any = AutoTokenizer.from_pretrained(teacher)
    texts = []
    for noun in NOUNS:
        tokens = tokenizer(f"the {noun} sees", add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            chosen = int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax())
        word = tokenizer.decode([*tokens, chosen])
        texts += [word, f"the {noun} sees the {noun}"]
    folder = tmp_path / "data"
    folder.mkdir()
    for task, of_task in (("a", texts[:5]), ("b", texts[5:])):
        (folder / f"{task}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in of_task))
    return folder


def test_before_it_is_imported_the_name_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["m", "--suite", "last_word", "--data", str(tmp_path), "--out", str(tmp_path / "o.json")]
    assert main(arguments) == 2
    assert "last_word" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"'last_word' is no suite; choose from blimp, .*held_out"):
        SUITES["last_word"]


@pytest.fixture
def models(teacher: Path, make_teacher: Callable[..., Path]) -> dict[str, Path]:
    """Two models by name."""
    return {"ours": teacher, "theirs": make_teacher("gpt2", seed=5)}


@pytest.fixture
def measured(models: dict[str, Path], data: Path, tmp_path: Path) -> list[Path]:
    """The results of both on the suite."""
    for name, model in models.items():
        out = tmp_path / f"{name}.json"
        assert main([str(model), "--suite", "last_word", "--data", str(data), "--out", str(out)]) == 0
    return [tmp_path / f"{name}.json" for name in models]


def decisions(model: Path, data: Path) -> dict[str, list[bool]]:
    """What a model gets right by definition, by task."""
    texts = {
        file.stem: [json.loads(line)["text"] for line in file.read_text().splitlines()]
        for file in sorted(data.glob("*.jsonl"))
    }
    return {task: [greedy_last_word(model, text) for text in of_task] for task, of_task in texts.items()}


@pytest.mark.usefixtures("plugin")
def test_it_is_measured_by_its_definition(measured: list[Path], models: dict[str, Path], data: Path) -> None:
    for file, model in zip(measured, models.values(), strict=True):
        figure = read_results(file).by_suite["last_word"].main
        accuracies = {task: sum(right) / len(right) for task, right in decisions(model, data).items()}
        assert {task: score.value for task, score in figure.tasks.items()} == pytest.approx(accuracies)
        assert figure.value == pytest.approx(sum(accuracies.values()) / 2)


@pytest.mark.usefixtures("plugin")
def test_it_is_a_column_of_an_exported_table(measured: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["export", *(f"{file.stem}={file}" for file in measured), "--published", "false"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].endswith("| last word | source |")
    assert f"{read_results(measured[0]).suites[0].main.value:.3f} ± " in table[2]


@pytest.mark.usefixtures("plugin")
def test_it_is_compared_item_by_item(measured: list[Path], models: dict[str, Path], data: Path, tmp_path: Path) -> None:
    ours, theirs = (list(chain(*decisions(model, data).values())) for model in models.values())
    assert any(ours)
    assert not all(ours)
    assert main(["compare", *map(str, measured), "--out", str(tmp_path / "c" / "c.json")]) == 0
    row = json.loads((tmp_path / "c" / "c.json").read_text())["suites"]["last_word"]
    alone = [sum(a and not b for a, b in zip(*pair, strict=True)) for pair in ((ours, theirs), (theirs, ours))]
    assert [row["first_alone"], row["second_alone"]] == alone
    # Two tasks of nearly the same size: nearly the test over all items.
    assert row["p_value"] == pytest.approx(binomtest(alone[0], sum(alone)).pvalue if sum(alone) else 1.0, abs=0.01)
    assert math.isclose(row["difference"], row["first"] - row["second"])


@pytest.mark.usefixtures("plugin", "measured")
def test_a_report_finds_and_names_it(tmp_path: Path) -> None:
    assert [list(found.by_suite) for _, found in find_sources([tmp_path]).results] == [["last_word"]] * 2
    write_report([tmp_path], tmp_path / "report.html")
    assert "last word" in (tmp_path / "report.html").read_text()


@pytest.mark.usefixtures("plugin")
def test_settings_and_help_have_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = GridSettings.model_validate(
        {"output": "o", "student": "s", "suites": {"last_word": tmp_path}, "rank_by": "last_word"}
    )
    assert grid.rank_by == "last_word"
    files = {"output": "o", "corpus": "c", "students": {}}
    assert list(StudySettings.model_validate(files | {"suites": {"last_word": tmp_path}}).suites) == ["last_word"]
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "held_out, last_word" in " ".join(capsys.readouterr().out.split())
