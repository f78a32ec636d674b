"""Every suite of the official pipelines in one table and on one page, for two models."""

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from palenka.eval.__main__ import main
from palenka.eval.overall import COLUMNS, columns_of, overall
from palenka.eval.reading_scores import NUMBERS
from palenka.eval.results import read_results
from palenka.eval.suite import Figure
from palenka.eval.suites import SUITES
from palenka.report.write import write_report

NOUNS = ("teacher", "student", "river", "stone", "garden", "token")
MEASURED = (
    "blimp_filtered",
    "blimp_supplement",
    "ewok_filtered",
    "entity_tracking_filtered",
    "comps",
    "global_piqa_parallel",
    "global_piqa_nonparallel",
    "wug_adj",
    "wug_past",
    "reading",
    "glue",
)


def write_rows(folder: Path, name: str, rows: Sequence[Mapping[str, object]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small files of every form, by the official names."""
    root = tmp_path_factory.mktemp("evaluation_data")
    pairs: list[dict[str, object]] = [
        {"sentence_good": f"the {noun} sees it .", "sentence_bad": f"sees the {noun} it ."} for noun in NOUNS
    ]
    write_rows(root / "blimp_filtered", "causative.jsonl", pairs)
    write_rows(root / "supplement_filtered", "hypernym.jsonl", pairs)
    targets = {"Domain": "social", "Target1": "it sees .", "Target2": "it reads ."}
    write_rows(root / "ewok_filtered", "social.jsonl", [targets | {"Context1": f"the {noun} ."} for noun in NOUNS])
    options = [f"the {noun}." for noun in NOUNS[:5]]
    boxes: list[dict[str, object]] = [
        {"input_prefix": f"Box {box} contains ", "options": options, "numops": box % 2} for box in range(6)
    ]
    write_rows(root / "entity_tracking", "regular.jsonl", boxes)
    prefixes = {"prefix_acceptable": "the river", "prefix_unacceptable": "the stone"}
    write_rows(
        root / "comps", "comps_base.jsonl", [prefixes | {"property_phrase": f"sees the {noun}"} for noun in NOUNS]
    )
    for name in ("global_piqa_parallel", "global_piqa_nonparallel"):
        solutions = {"solution0": "sees it", "solution1": "reads", "label": 1}
        write_rows(
            root / name, "eng_latn.jsonl", [solutions | {"prompt": f"the {noun}", "example_id": noun} for noun in NOUNS]
        )
    wugs: list[dict[str, object]] = [
        {"sentences": f"the {noun}\tthe {noun}s", "ratio": len(noun) / 9} for noun in NOUNS
    ]
    write_rows(root / "wug_adj_nominalization", "wug.jsonl", wugs)
    write_rows(root / "wug_past_tense", "wug.jsonl", wugs)
    for kind in ("train", "valid"):
        rows: list[dict[str, object]] = [
            {"sentence1": f"the {noun}", "sentence2": "it sees", "label": place % 2} for place, noun in enumerate(NOUNS)
        ]
        write_rows(root / "glue_filtered", f"rte.{kind}.jsonl", rows)
    draw = np.random.RandomState(0)
    (root / "reading").mkdir()
    with (root / "reading" / "reading_data.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["item", "word", "prev_item", "prev_word", *NUMBERS])
        for place in range(60):
            noun = NOUNS[place % 6]
            writer.writerow([f"the {noun}", NOUNS[place % 5], "the", noun, place // 4, *draw.rand(len(NUMBERS) - 1)])
    return root


@pytest.fixture(scope="module")
def measured(data: Path, make_teacher: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The results of two models on every suite, in one folder."""
    folder = tmp_path_factory.mktemp("measured")
    asked = ["--suite", *MEASURED, "--data", str(data), "--protocol", "babylm-2025"]
    files = []
    for name, architecture in (("ours", "llama"), ("theirs", "gpt2")):
        model = make_teacher(architecture, seed=4, max_position_embeddings=64)
        files.append(folder / f"{name}.json")
        assert main([str(model), *asked, "--out", str(files[-1])]) == 0
    return files


@pytest.fixture(scope="module")
def page(measured: list[Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report about them."""
    out = tmp_path_factory.mktemp("report") / "report.html"
    write_report([measured[0].parent], out)
    return out.read_text(encoding="utf-8")


def figures_of(file: Path) -> dict[str, Figure]:
    return {name: result.main for name, result in read_results(file).by_suite.items()}


def mean_of_nine(figures: Mapping[str, Figure]) -> float:
    """The official mean: Global PIQA's two parts are one column, and the wugs are none."""
    accuracies = ("blimp_filtered", "blimp_supplement", "ewok_filtered", "comps", "glue", "entity_tracking_filtered")
    expected = [100 * figures[name].value for name in accuracies] + [figures["reading"].value]
    expected += [50 * (figures["global_piqa_parallel"].value + figures["global_piqa_nonparallel"].value)]
    return sum(expected) / 9


def test_all_suites_are_in_one_file(measured: list[Path]) -> None:
    assert list(read_results(measured[0]).by_suite) == list(MEASURED)


def test_the_table_has_every_suite_and_the_mean_of_nine_columns(
    measured: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["export", *(f"{file.stem}={file}" for file in measured), "--published", "false", "--overall"]) == 0
    header, _, ours, _ = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.strip().split("\n")
    )
    row, figures = dict(zip(header, ours, strict=True)), figures_of(measured[0])
    assert float(row["overall"].split(" ± ")[0]) == pytest.approx(mean_of_nine(figures), abs=6e-4)
    assert row["COMPS"].startswith(f"{figures['comps'].value:.3f} ± ")


def test_all_suites_of_two_models_are_compared(measured: list[Path]) -> None:
    assert main(["compare", *map(str, measured)]) == 0


def test_the_page_has_every_suite(measured: list[Path], page: str) -> None:
    for result in read_results(measured[0]).suites:
        assert result.title in page
    for name in ("COMPS", "Global PIQA", "GLUE", "reading"):
        assert f'<th scope="col">{name}</th>' in page


def test_the_page_draws_chance(page: str) -> None:
    assert "The dashed rule is chance, 20 %." in page
    assert "The dashed rule is chance, 25 %." in page


def test_the_page_has_the_mean_of_nine_columns_with_its_interval(measured: list[Path], page: str) -> None:
    figures = figures_of(measured[0])
    low, high = overall(figures).interval or (0.0, 0.0)
    assert f">{mean_of_nine(figures):.1f}<small>{low:.1f} to {high:.1f}</small></td></tr>" in page


def test_overall_is_the_mean_of_nine_columns_and_what_is_missing_is_0() -> None:
    def figure(value: float, unit: str = "", stderr: float | None = None) -> Figure:
        return Figure(value=value, unit=unit, stderr=stderr, higher_is_better=True)

    assert len(COLUMNS) == 9
    assert {SUITES[name].column for name in SUITES} - {""} <= set(COLUMNS)
    figures = {
        "blimp_filtered": figure(0.7),
        "global_piqa_parallel": figure(0.3),
        "global_piqa_nonparallel": figure(0.5),
        "reading": figure(2.5, "% of variance left"),
        "entity_tracking": figure(0.9),  # the whole task scores no more
        "wug_adj": figure(0.4, "correlation"),
        "a suite of someone else's": figure(0.5),
    }
    assert {name: score.value for name, score in columns_of(figures).items()} == pytest.approx(
        {"BLiMP": 70, "Global PIQA": 40, "reading": 2.5}
    )
    assert overall(figures).value == pytest.approx((70 + 40 + 2.5) / 9)
    assert overall(figures).interval is None
    assert overall({}).value == 0


def test_the_error_of_overall_is_that_of_a_mean_of_what_was_measured() -> None:
    figures = {
        "blimp_filtered": Figure(value=0.7, stderr=0.02, higher_is_better=True),
        "global_piqa_parallel": Figure(value=0.3, stderr=0.03, higher_is_better=True),
        "global_piqa_nonparallel": Figure(value=0.5, stderr=0.04, higher_is_better=True),
        "reading": Figure(value=2.5, stderr=0.6, unit="% of variance left", higher_is_better=True),
    }
    # In %: 2 of BLiMP, (3² + 4²)½ / 2 of the mean of two, 0.6 as it is; nothing of the six that were not measured.
    stderr = math.sqrt(2**2 + 2.5**2 + 0.6**2) / 9
    found = overall(figures)
    assert found.stderr == pytest.approx(stderr)
    assert found.interval == pytest.approx((found.value - 1.959964 * stderr, found.value + 1.959964 * stderr))
