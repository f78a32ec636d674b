"""Learning curves over a run's revisions: each measured as by itself, nothing twice, mistakes in a sentence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from palenka.eval.__main__ import main
from palenka.eval.learning_curve import read_curve
from palenka.eval.results import read_results
from palenka.eval.suite import Conditions, Suite
from palenka.eval.suites import SUITES
from palenka.ground.errors import UserError

PAIRS = [
    ("the teacher sees the stone .", "the stone sees the the ."),
    ("the river follows .", "river the follows ."),
    ("the garden keeps the river .", "the garden the keeps river ."),
]


@pytest.fixture
def run(train_with_revisions: Callable[..., Path]) -> Path:
    """A short run with two revisions."""
    return train_with_revisions("student", [100, 300], fraction=0.1)


@pytest.fixture
def download(tmp_path: Path) -> Path:
    """The fast part of BLiMP, and all of it, which is not for revisions."""
    for folder, pairs in (("fast_eval/blimp_fast", PAIRS[:2]), ("full_eval/blimp_filtered", PAIRS)):
        path = tmp_path / "evaluation_data" / folder
        path.mkdir(parents=True)
        rows = [json.dumps({"sentence_good": good, "sentence_bad": bad}) for good, bad in pairs]
        (path / "agreement.jsonl").write_text("\n".join(rows) + "\n")
    return tmp_path / "evaluation_data"


def test_each_revision_is_measured_on_the_fast_part_as_by_itself(
    run: Path, download: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "student.json"
    words = [str(run), "--revisions", "--babylm", str(download), "--out", str(out)]
    assert main(words) == 0
    told = capsys.readouterr().out
    curve = read_curve(out)
    assert (curve.kind, curve.name) == ("revisions", "student")
    assert [point.revision for point in curve.revisions] == ["chck_100", "chck_300"]
    for point in curve.revisions:
        alone = tmp_path / f"{point.revision}.json"
        place = run / "revisions" / point.revision
        asked = ["--suite", "blimp_filtered", "--protocol", "babylm-2025"]
        fast = download / "fast_eval" / "blimp_fast"
        assert main([str(place), *asked, "--data", str(fast), "--out", str(alone)]) == 0
        expected = read_results(alone)
        measured = point.suites["blimp_filtered"]
        assert measured.figure == expected.by_suite["blimp_filtered"].main.without_tasks()
        assert (measured.figure.n, measured.title, measured.conditions["protocol"]) == (
            2,
            "BLiMP filtered",
            "babylm-2025",
        )
        assert point.weights == expected.model.weights
        record = json.loads((place / "model.commit.json").read_text())
        assert (point.step, point.words) == (record["step"], record["words"])
        assert f"{point.words:,}" in told
        kept = out.parent / "student" / f"{point.revision}.json"
        assert read_results(kept).by_suite == expected.by_suite
        predictions = out.parent / "results" / "student" / point.revision / "zero_shot/causal/blimp/blimp_fast"
        chosen = json.loads((predictions / "predictions.json").read_text())["agreement"]["predictions"]
        assert [each["pred"] in pair for each, pair in zip(chosen, PAIRS[:2], strict=True)] == [True, True]
    before = {path: path.stat().st_mtime_ns for path in (out.parent / "student").iterdir()}
    assert main(words) == 0
    assert {path: path.stat().st_mtime_ns for path in (out.parent / "student").iterdir()} == before


def test_revisions_are_measured_on_any_data(run: Path, download: Path, tmp_path: Path) -> None:
    out = tmp_path / "pairs.json"
    data = ["--suite", "minimal_pairs", "--data", str(download / "full_eval" / "blimp_filtered")]
    assert main([str(run), "--revisions", *data, "--out", str(out)]) == 0
    assert [point.suites["minimal_pairs"].figure.n for point in read_curve(out).revisions] == [3, 3]
    record = json.loads(out.read_text())
    record["revisions"][0]["words"] += 1
    out.write_text(json.dumps(record))
    with pytest.raises(UserError, match="was changed since `palenka eval` wrote it"):
        read_curve(out)


def test_an_out_that_would_mix_with_other_files_is_refused(
    run: Path, download: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    (tmp_path / "link").symlink_to(run)
    for out, told in (
        (tmp_path / "curve", "curve, but the curve goes to a JSON file"),
        (tmp_path / "curve.parquet", "curve.parquet, but the curve goes to a JSON file"),
        (run.with_suffix(".json"), "student, where the run keeps its models; choose another out"),
        (tmp_path / "link.json", "link, where the run keeps its models; choose another out"),
        (run / "revisions.json", "revisions, where the run keeps its models; choose another out"),
    ):
        assert main([str(run), "--revisions", "--babylm", str(download), "--out", str(out)]) == 2
        assert told in " ".join(capsys.readouterr().err.split())
    (tmp_path / "link").unlink()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_run_that_is_not_finished_has_no_curve(
    run: Path, download: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "result.json").unlink()
    assert main([str(run), "--revisions", "--babylm", str(download), "--out", str(tmp_path / "x.json")]) == 2
    assert "is not finished, and its curve would end before its end" in " ".join(capsys.readouterr().err.split())


def test_data_is_read_for_predictions_once(
    run: Path, download: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    suite = SUITES["blimp_filtered"]
    read = type(suite).read

    def counted(self: Suite[Any], folder: Path, conditions: Conditions) -> Any:
        reads.append(folder.name)
        return read(self, folder, conditions)

    monkeypatch.setattr(type(suite), "read", counted)
    assert main([str(run), "--revisions", "--babylm", str(download), "--out", str(tmp_path / "x.json")]) == 0
    # Once for each of two revisions that is measured, and once for the predictions of both.
    assert reads == ["blimp_fast"] * 3


def test_a_mistake_is_one_sentence(
    run: Path, download: Path, teacher: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    options = ["--revisions", "--babylm", download, "--out", tmp_path / "x.json"]
    assert "has no revisions; they are kept while a run trains" in refused("eval", teacher, *options)
    (tmp_path / "x.json").write_text("{}")
    assert "x.json holds no learning curve" in refused("eval", run, *options)
    (download / "fast_eval").rename(tmp_path / "elsewhere")
    (tmp_path / "x.json").unlink()
    assert "has no folder of a suite that is known; these are aoa, blimp_fast, " in refused("eval", run, *options)
