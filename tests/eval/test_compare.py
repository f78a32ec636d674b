"""Paired comparison of two models: against closed forms, plain resampling, and files that do not fit."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from palenka.eval.__main__ import main
from palenka.eval.compare import compare
from palenka.eval.results import ModelIdentity, Results, SuiteResult, items_file, write_results
from palenka.eval.statistics import (
    expected_maximum,
    mcnemar_p_value,
    mean_interval,
    residual_deviation,
)
from palenka.eval.suites import SUITES
from palenka.ground.errors import UserError


def scores(right: dict[str, list[bool]]) -> pa.Table:
    """Scores by which some pairs of each task are right."""
    tasks = [task for task, decisions in right.items() for _ in decisions]
    indices = [index for decisions in right.values() for index in range(len(decisions))]
    good = [-1.0 if decision else -3.0 for decisions in right.values() for decision in decisions]
    return pa.table({"task": tasks, "index": indices, "score_good": good, "score_bad": [-2.0] * len(good)})


def written(
    path: Path, items: pa.Table, suite: str = "blimp", data: str = "d", protocol: str = "babylm-2024", **more: int
) -> Path:
    """A file with these items of a suite."""
    conditions: dict[str, str | int] = {"protocol": protocol, **more}
    measured = dict(SUITES[suite].figures(items))
    result = SuiteResult(suite=suite, title=suite, version=1, data=data, conditions=conditions, **measured)
    model = ModelIdentity(weights=path.name, config={})
    out = path.with_suffix(".json")
    write_results(out, Results(name=path.name, model=model, parameters=1, suites=(result,)), [items])
    return out


def random_decisions(seed: int, chance: float) -> dict[str, list[bool]]:
    generator = np.random.RandomState(seed)
    return {task: (generator.random_sample(n) < chance).tolist() for task, n in (("a", 300), ("b", 80), ("c", 1))}


ONE, OTHER = random_decisions(0, 0.8), random_decisions(1, 0.6)


@pytest.fixture
def compared(tmp_path: Path) -> tuple[Path, Path]:
    """The results of two models that get `ONE` and `OTHER` right."""
    return written(tmp_path / "one", scores(ONE)), written(tmp_path / "other", scores(OTHER))


def test_the_command_prints_and_writes_the_comparison(
    compared: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "c.json"
    assert main(["compare", *map(str, compared), "--out", str(out)]) == 0
    result = json.loads(out.read_text())["suites"]["blimp"]
    assert result == compare(*compared)["suites"]["blimp"]
    assert f"{result['tasks']['a']['difference']:+.4f}" in capsys.readouterr().out


def test_a_comparison_counts_what_one_model_alone_gets_right_in_each_task(compared: tuple[Path, Path]) -> None:
    tasks = compare(*compared)["suites"]["blimp"]["tasks"]
    assert list(tasks) == ["a", "b", "c"]
    for task, row in tasks.items():
        wins = sum(x and not y for x, y in zip(ONE[task], OTHER[task], strict=True))
        losses = sum(y and not x for x, y in zip(ONE[task], OTHER[task], strict=True))
        assert (row["n"], row["first_alone"], row["second_alone"]) == (len(ONE[task]), wins, losses)
        assert row["difference"] == pytest.approx((wins - losses) / len(ONE[task]))
        assert (row["first"], row["second"]) == (np.mean(ONE[task]), np.mean(OTHER[task]))
        assert row["p_value"] == mcnemar_p_value(alone(wins, losses))
        assert row["interval"][0] <= row["difference"] <= row["interval"][1]


def test_a_comparison_of_a_suite_is_the_mean_over_its_tasks(compared: tuple[Path, Path]) -> None:
    result = compare(*compared)["suites"]["blimp"]
    rows = result["tasks"].values()
    assert result["n"] == 381
    assert result["higher_is_better"]
    assert result["difference"] == pytest.approx(np.mean([row["difference"] for row in rows]))
    assert result["first_alone"] == sum(row["first_alone"] for row in rows)


def test_the_other_way_round_everything_changes_its_sign(compared: tuple[Path, Path]) -> None:
    first, second = compared
    there, back = (compare(*pair)["suites"]["blimp"] for pair in ((first, second), (second, first)))
    assert (back["difference"], back["p_value"]) == (-there["difference"], there["p_value"])


@pytest.mark.parametrize(("columns", "has_counts"), [(80, False), (160, True)])
def test_a_comparison_is_read_in_the_columns_that_there_are(
    columns: int, has_counts: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    right = {"wh_questions_subject_gap_long_distance": [True, False, True, True], "short": [False, True]}
    files = [str(written(tmp_path / name, scores(right))) for name in ("one", "other")]
    assert main(["compare", *files]) == 0
    _, *table = capsys.readouterr().out.splitlines()
    assert max(map(len, table)) <= columns
    assert "…" not in "".join(table)
    assert ("only second" in "".join(table)) == has_counts
    words = " ".join(line.split("  ")[0].strip() for line in table)
    assert "wh questions subject gap long distance" in words


def test_the_order_of_pairs_in_a_file_does_not_matter(tmp_path: Path) -> None:
    one, other = scores(random_decisions(0, 0.8)), scores(random_decisions(1, 0.6))
    mixed = other.take(np.random.RandomState(2).permutation(len(other)))
    first = written(tmp_path / "one", one)
    results = [compare(first, written(tmp_path / name, s)) for name, s in (("x", other), ("y", mixed))]
    assert results[0]["suites"] == results[1]["suites"]


RIGHT = random_decisions(0, 0.8)


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """The results of a model."""
    return written(tmp_path / "one", scores(RIGHT))


@pytest.mark.parametrize("is_first", [True, False])
def test_files_of_other_pairs_are_refused_with_both_names(first: Path, tmp_path: Path, is_first: bool) -> None:
    fewer = written(tmp_path / "fewer", scores(RIGHT | {"a": RIGHT["a"][:-1]}))
    with pytest.raises(UserError, match=r"one\.json has item 299 of blimp task a, but .*fewer\.json has not"):
        compare(*((first, fewer) if is_first else (fewer, first)))


def test_files_of_other_protocols_are_refused(first: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"blimp\.conditions\.protocol is 'babylm-2025' there, but 'babylm-2024' is"):
        compare(first, written(tmp_path / "later", scores(RIGHT), protocol="babylm-2025"))


def test_files_of_other_data_are_refused(first: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"one\.json and .*data\.json were measured on other data of blimp"):
        compare(first, written(tmp_path / "data", scores(RIGHT), data="other"))


def test_files_of_other_suites_are_refused(first: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not match: suites is \['blimp_filtered'\] there"):
        compare(first, written(tmp_path / "suite", scores(RIGHT), "blimp_filtered"))


def test_a_file_with_pairs_twice_is_refused(first: Path, tmp_path: Path) -> None:
    twice = written(tmp_path / "twice", pa.concat_tables([scores(RIGHT), scores(RIGHT)]))
    with pytest.raises(UserError, match=r"twice\.json has 762 rows of 381 items of blimp; measure again"):
        compare(first, twice)


def test_what_holds_no_results_is_refused(first: Path, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("precious")
    with pytest.raises(UserError, match=r"x\.json holds no results of `palenka eval`"):
        compare(first, tmp_path / "x.json")


def test_a_file_that_is_not_there_and_a_folder_are_refused(first: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read results .*nowhere\.json"):
        compare(tmp_path / "nowhere.json", first)
    with pytest.raises(UserError, match=r" is a folder; give the FILE\.json"):
        compare(tmp_path, tmp_path)


def test_items_that_are_not_those_of_the_results_are_refused(first: Path, tmp_path: Path) -> None:
    fewer = written(tmp_path / "fewer", scores(RIGHT))
    items_file(fewer).write_text("precious")
    with pytest.raises(UserError, match=r"fewer\.parquet is missing or not what fewer\.json was made with"):
        compare(fewer, first)


def alone(first: int, second: int) -> list[NDArray[np.int64]]:
    """A task of which each model alone gets so many items right."""
    return [np.array([1] * first + [-1] * second, dtype=np.int64)]


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_two_sided_binomial_test(b: int, c: int) -> None:
    n = b + c
    # Two-sided by definition: all outcomes that are no more probable than the one found.
    probable = [math.comb(n, k) for k in range(n + 1)]
    expected = sum(ways for ways in probable if ways <= math.comb(n, b)) / 2**n
    assert mcnemar_p_value(alone(b, c)) == mcnemar_p_value(alone(c, b)) == pytest.approx(expected, rel=1e-12)


def test_mcnemar_of_many_pairs_is_the_normal_test() -> None:
    b, c = 30_000, 30_500
    z = (abs(b - c) - 1) / math.sqrt(b + c)
    assert mcnemar_p_value(alone(b, c)) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-3)
    assert mcnemar_p_value(alone(0, 60_000)) == 0.0


@pytest.mark.parametrize(("count", "quantile"), [(2, 12.706205), (3, 4.302653), (4, 3.182446), (10, 2.262157)])
def test_the_interval_of_a_few_values_is_students(count: int, quantile: float) -> None:
    """Against published quantiles at 97.5 %."""
    values = np.random.RandomState(count).normal(3.0, 2.0, count)
    error = values.std(ddof=1) / np.sqrt(count)
    expected = (values.mean() - quantile * error, values.mean() + quantile * error)
    assert mean_interval(values.tolist()) == pytest.approx(expected, abs=1e-5)


def test_a_single_value_has_no_interval_and_equal_ones_have_no_width() -> None:
    assert mean_interval([1.0]) is None
    assert mean_interval([2.0, 2.0, 2.0]) == (2.0, 2.0)


def windows(losses: Any, units: int = 900) -> pa.Table:
    ones = np.ones(len(losses), dtype=np.int64)
    about = {"task": ["dev"] * len(losses), "index": range(len(losses)), "tokens": ones, "words": ones, "bytes": ones}
    return pa.table(about | {"unit": [f"block {place % units}" for place in range(len(losses))], "loss": losses})


def test_windows_are_compared_in_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.RandomState(0)
    hard = generator.gamma(9.0, 0.4, size=900)
    ours, theirs = hard + generator.normal(-0.02, 0.1, size=900), hard + generator.normal(0.0, 0.1, size=900)
    files = [written(tmp_path / name, windows(of), "held_out") for name, of in (("ours", ours), ("theirs", theirs))]
    test = compare(*files)["suites"]["held_out"]
    differences = ours - theirs
    error = differences.std(ddof=1) / math.sqrt(900)
    assert (test["n"], test["higher_is_better"]) == (900, False)
    assert (test["first"], test["second"]) == (pytest.approx(ours.mean()), pytest.approx(theirs.mean()))
    assert test["difference"] == pytest.approx(differences.mean(), abs=1e-6)
    # The normal interval of the differences; that of the levels is eight times as wide.
    assert test["interval"] == pytest.approx(
        [differences.mean() - 1.96 * error, differences.mean() + 1.96 * error], abs=0.15 * error
    )
    assert hard.std(ddof=1) > 8 * differences.std(ddof=1)
    assert 0 < test["p_value"] < 1
    assert main(["compare", *map(str, files)]) == 0
    assert f"{test['difference']:+.4f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("about", "told"),
    [
        ({"data": "e"}, "a.json and .*b.json were measured on other data of held_out, whose text is not the same"),
        ({"windows": 9}, "b.json does not match: held_out.conditions.windows is .*"),
    ],
)
def test_other_windows_are_not_compared(tmp_path: Path, about: dict[str, Any], told: str) -> None:
    losses = windows(np.ones(9))
    first, second = written(tmp_path / "a", losses, "held_out"), written(tmp_path / "b", losses, "held_out", **about)
    with pytest.raises(UserError, match=f"{told}; compare models on the same"):
        compare(first, second)


@given(st.integers(2, 5), st.integers(2, 5), st.integers(0, 2**31))
def test_the_noise_of_a_ranking_is_the_rest_of_a_least_squares_fit(variants: int, seeds: int, seed: int) -> None:
    values = np.random.RandomState(seed).normal(3.0, 0.1, size=(variants, seeds))
    design = [
        [float(place == row) for place in range(variants)] + [float(place == column) for place in range(seeds)]
        for row in range(variants)
        for column in range(seeds)
    ]
    fit = np.linalg.lstsq(np.array(design), values.ravel(), rcond=None)[0]
    rest = values.ravel() - np.array(design) @ fit
    expected = math.sqrt(float(rest @ rest) / ((variants - 1) * (seeds - 1)))
    assert residual_deviation(values) == pytest.approx(expected)
    # What a seed does to every variant alike, or a variant with every seed, is no noise.
    assert residual_deviation(values + np.arange(seeds) + np.arange(variants)[:, None]) == pytest.approx(expected)


def test_a_single_seed_tells_nothing_of_the_noise() -> None:
    assert residual_deviation(np.ones((5, 1))) is None
    assert residual_deviation(np.ones((1, 5))) is None


@pytest.mark.parametrize(
    # Known in closed form, and of 25 as tabulated (Harter 1961).
    ("count", "expected"),
    [(1, 0.0), (2, 1 / math.sqrt(math.pi)), (3, 1.5 / math.sqrt(math.pi)), (25, 1.96531)],
)
def test_the_best_of_equals_stands_out_by_the_expected_maximum(count: int, expected: float) -> None:
    assert expected_maximum(count) == pytest.approx(expected, abs=1e-5)
