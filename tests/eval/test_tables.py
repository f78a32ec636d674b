"""Tables of results in three forms, the published rows beside ours."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from palenka.eval.__main__ import main
from palenka.eval.results import ModelIdentity, Results, SuiteResult
from palenka.eval.suite import Figure
from palenka.eval.suites import SUITES
from palenka.eval.tables import PUBLISHED, export
from palenka.ground.errors import UserError
from palenka.ground.records import write_sealed


def written(
    path: Path, suite: str, accuracy: float = 0.61239, weights: str = "w", name: str = "my_run", **changes: str | int
) -> str:
    figure = Figure(value=accuracy, stderr=0.00561, higher_is_better=True)
    if suite == "held_out":
        figure = Figure(value=4.98406, interval=(4.9, 5.1), unit="nats per token", higher_is_better=False)
    conditions: dict[str, str | int] = {"protocol": "babylm-2024", "precision": "float32", **changes}
    result = SuiteResult(
        suite=suite,
        title=SUITES[suite].title,
        version=1,
        data="d",
        conditions=conditions if suite != "held_out" else {"length": 128},
        figures={"main": figure},
    )
    model = ModelIdentity(weights=weights, config={})
    write_sealed(path, Results(name=name, model=model, parameters=1, suites=(result,)).as_plain())
    return str(path)


def test_markdown_has_the_published_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [written(tmp_path / "a.json", "blimp_filtered"), written(tmp_path / "b.json", "blimp_supplement", 0.5)]
    assert main(["export", *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| model | BLiMP supplement | BLiMP filtered | EWoK filtered | source |"
    assert lines[2] == "| BabyLlama1-58M | 0.581 ± 0.0054 | 0.676 ± 0.0016 | 0.501 ± 0.0057 | published, babylm-2024 |"
    assert lines[-1] == "| my_run | 0.500 ± 0.0056 | 0.612 ± 0.0056 | – | ours, babylm-2024 |"
    assert len(lines) == 2 + len(PUBLISHED) + 1 == 13


def test_csv_has_the_figures_in_full(tmp_path: Path) -> None:
    files = [
        f"mine={written(tmp_path / 'a.json', 'blimp_filtered')}",
        f"mine={written(tmp_path / 'h.json', 'held_out')}",
    ]
    rows = list(csv.DictReader(io.StringIO(export(files, "csv", published=False))))
    assert rows == [
        {
            "model": "mine",
            "blimp_supplement": "",
            "blimp_supplement_stderr": "",
            "blimp_filtered": "0.61239",
            "blimp_filtered_stderr": "0.00561",
            "ewok_filtered": "",
            "ewok_filtered_stderr": "",
            "held_out": "4.98406",
            "held_out_stderr": "",
            "source": "ours, babylm-2024",
        }
    ]


def test_each_suite_has_a_column_with_its_unit(tmp_path: Path) -> None:
    files = [written(tmp_path / "a.json", "minimal_pairs"), written(tmp_path / "b.json", "held_out")]
    lines = export(files, "markdown", published=False).splitlines()
    assert lines[0].endswith("| EWoK filtered | minimal pairs | held-out cross-entropy, nats per token | source |")
    assert lines[2] == "| my_run | – | – | – | 0.612 ± 0.0056 | 4.984 | ours, babylm-2024 |"


def test_latex_is_written_to_a_file(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "table.tex"
    file = written(tmp_path / "a.json", "blimp_filtered", protocol="babylm-2025", precision="bf16")
    assert main(["export", file, "--format", "latex", "--out", str(out)]) == 0
    lines = out.read_text().splitlines()
    assert lines[0] == r"\begin{tabular}{lrrrl}"
    assert (
        r"GPT2-44M & 0.591 $\pm$ 0.0056 & 0.633 $\pm$ 0.0017 & 0.501 $\pm$ 0.0057 & published, babylm-2024 \\" in lines
    )
    assert lines[-3] == r"my\_run & -- & 0.612 $\pm$ 0.0056 & -- & ours, babylm-2025, bf16 \\"


def test_what_means_something_to_latex_is_escaped(tmp_path: Path) -> None:
    file = written(tmp_path / "a.json", "blimp_filtered")
    table = export([f"a$b#c{{d}}e\\f^g~h%i&j_k<l>m|n={file}"], "latex", published=False)
    expected = (
        r"a\$b\#c\{d\}e\textbackslash{}f\textasciicircum{}g\textasciitilde{}h\%i\&j\_k"
        r"\textless{}l\textgreater{}m\textbar{}n & -- & 0.612 $\pm$ 0.0056 & -- & ours, babylm-2024 \\"
    )
    assert expected in table.splitlines()


def test_results_that_do_not_belong_in_one_row_are_refused(tmp_path: Path) -> None:
    first = written(tmp_path / "a.json", "blimp_filtered")
    for told, changes in (
        ("another blimp_filtered of my_run", {}),
        ("other weights of my_run", {"suite": "blimp", "weights": "x"}),
        ("another protocol of my_run", {"suite": "blimp", "protocol": "babylm-2025"}),
        ("another precision of my_run", {"suite": "blimp", "precision": "bf16"}),
    ):
        others: dict[str, Any] = {"suite": "blimp_filtered"} | changes
        second = written(tmp_path / "b.json", others.pop("suite"), **others)
        with pytest.raises(UserError, match=rf"b\.json has {told} than a file before it; give NAME="):
            export([first, second], "markdown", published=True)
        assert "| other |" in export([first, f"other={second}"], "markdown", published=True)
    with pytest.raises(UserError, match="there are no results to export"):
        export([], "csv", published=False)
    (tmp_path / "x.json").write_text("precious")
    with pytest.raises(UserError, match=r"x\.json holds no results of `palenka eval`"):
        export([str(tmp_path / "x.json")], "csv", published=True)
    with pytest.raises(UserError, match=r"cannot read results .*nowhere\.json"):
        export([str(tmp_path / "nowhere.json")], "csv", published=False)
