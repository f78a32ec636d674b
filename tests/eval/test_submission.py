"""A whole download at once: every suite that has files, a table, and predictions where the pipeline has them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from palenka.eval.__main__ import main
from palenka.eval.results import read_results

PAIRS = [("the teacher sees the stone .", "the stone sees the teacher ."), ("the river .", "river the .")]


@pytest.fixture
def download(tmp_path: Path) -> Path:
    """BLiMP and the supplement as the official folders have them, with what a Mac leaves beside files."""
    for folder in ("blimp_filtered", "supplement_filtered"):
        path = tmp_path / "evaluation_data" / "full_eval" / folder
        path.mkdir(parents=True)
        rows = [json.dumps({"sentence_good": good, "sentence_bad": bad, "UID": "x"}) for good, bad in PAIRS]
        (path / "agreement.jsonl").write_text("\ufeff" + "\n".join(rows) + "\n\n", encoding="utf-8")
        (path / "._agreement.jsonl").write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / "evaluation_data" / "notes").mkdir()
    return tmp_path / "evaluation_data"


def test_every_suite_with_files_is_measured_and_its_predictions_are_the_chosen_texts(
    teacher: Path, download: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "run.json"
    assert main([str(teacher), "--babylm", str(download), "--out", str(out)]) == 0
    results = read_results(out)
    assert set(results.by_suite) == {"blimp_filtered", "blimp_supplement"}
    assert {result.conditions["protocol"] for result in results.suites} == {"babylm-2025"}
    table = out.with_suffix(".md").read_text().splitlines()
    assert table[2].startswith("| BabyLlama1-58M |")
    assert table[-1].startswith(f"| {teacher.name} | {results.by_suite['blimp_supplement'].main.value:.3f} ± ")
    rows = pq.read_table(out.with_suffix(".parquet")).to_pylist()
    for suite, folder in (("blimp_filtered", "blimp_filtered"), ("blimp_supplement", "supplement_filtered")):
        path = tmp_path / "out" / "results" / teacher.name / "main" / "zero_shot" / "causal" / "blimp" / folder
        predictions = json.loads((path / "predictions.json").read_text())["agreement"]["predictions"]
        items = [row for row in rows if row["suite"] == suite]
        expected = [pair[row["score_good"] < row["score_bad"]] for pair, row in zip(PAIRS, items, strict=True)]
        assert [each["pred"] for each in predictions] == expected
    before = out.read_bytes()
    assert main([str(teacher), "--babylm", str(download), "--out", str(out)]) == 0
    assert out.read_bytes() == before
    assert "BLiMP filtered" in capsys.readouterr().out


def test_predictions_of_another_model_of_the_same_name_are_not_written_over(
    teacher: Path,
    make_teacher: Callable[..., Path],
    download: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    other = tmp_path / "elsewhere" / teacher.name
    shutil.copytree(make_teacher("llama", seed=9), other)
    assert main([str(teacher), "--babylm", str(download), "--out", str(out / "first.json")]) == 0
    predictions = {path: path.read_bytes() for path in (out / "results").rglob("*.json")}
    assert main([str(other), "--babylm", str(download), "--out", str(out / "second.json")]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert f"{out / 'results' / teacher.name / 'main'} has predictions of another model" in told
    assert {path: path.read_bytes() for path in (out / "results").rglob("*.json")} == predictions
    assert not (out / "second.json").exists()


def test_a_suite_whose_texts_are_too_long_is_left_out_and_named(
    teacher: Path, download: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = download / "full_eval" / "supplement_filtered" / "agreement.jsonl"
    long = {"sentence_good": "the river . " * 400, "sentence_bad": "the stone . " * 400, "UID": "x"}
    path.write_text(json.dumps(long) + "\n")
    out = tmp_path / "out" / "run.json"
    for _ in range(2):
        assert main([str(teacher), "--babylm", str(download), "--out", str(out)]) == 0
        assert set(read_results(out).by_suite) == {"blimp_filtered"}
        assert "BLiMP supplement is left out: " in capsys.readouterr().err
    assert (tmp_path / "out" / "results").is_dir()
    assert main([str(teacher), "--suite", "blimp_supplement", "--data", str(path.parent), "--out", str(out)]) == 2
    (download / "full_eval" / "blimp_filtered" / "agreement.jsonl").write_text(json.dumps(long) + "\n")
    assert main([str(teacher), "--babylm", str(download), "--out", str(tmp_path / "none.json")]) == 2
    assert "too few positions for every suite" in capsys.readouterr().err


@pytest.mark.parametrize("out", [".", "folder", "run.md", "run.parquet"])
def test_what_can_be_no_file_of_figures_is_refused_before_anything_is_measured(
    out: str,
    teacher: Path,
    download: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "here" / "folder").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    suite = ["--suite", "blimp_filtered", "--data", str(download / "full_eval" / "blimp_filtered")]
    for asked in (["--babylm", str(download)], *([suite] if out != "run.md" else [])):
        assert main([str(teacher), *asked, "--out", out]) == 2
        assert "but the figures go to a JSON file and the items beside it; give FILE.json" in capsys.readouterr().err
    assert [path.name for path in Path().rglob("*")] == ["folder"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--babylm", "nowhere"], "babylm is nowhere, which is not a folder"),
        (["--babylm", "."], "has no folder of a suite that is known; these are "),
        (["--babylm", ".", "--data", "."], "data and babylm are both given, or neither"),
        (["--babylm", ".", "--protocol", "babylm-2024"], "babylm measures all suites under babylm-2025"),
        (["--data", ".", "--suite", "reading", "--limit", "10"], "limit is given, but only glue reads it"),
        ([], "data and babylm are both given, or neither"),
    ],
)
def test_a_mistake_is_one_sentence(
    options: list[str],
    told: str,
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(teacher), "--out", "x.json", *options]) == 2
    assert told in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "x.json").exists()
