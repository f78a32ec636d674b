"""Errors, intervals and tests: against closed forms and another library, and against answers that are known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binomtest, t

from palenka.eval.decisions import mean_of_tasks
from palenka.eval.statistics import (
    difference_standard_error,
    mcnemar_p_value,
    mean_standard_error,
    ratio_estimate,
    share_interval,
    task_standard_error,
)
from palenka.eval.suite import Score

SUPPLEMENT = (64, 165, 280, 842, 3867)
"""Pairs in its tasks."""


def decisions(generator: np.random.RandomState, chances: list[float]) -> list[NDArray[np.int64]]:
    return [(generator.random_sample(n) < p).astype(np.int64) for n, p in zip(SUPPLEMENT, chances, strict=True)]


@given(st.integers(1, 400), st.data())
def test_the_interval_of_a_share_is_wilsons(count: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, count))
    expected = binomtest(right, count).proportion_ci(method="wilson")
    assert share_interval(right / count, count) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_the_interval_of_a_suite_is_that_of_the_mean_over_its_tasks() -> None:
    """Its error is the deviation of many draws, and the interval covers the truth; lm-eval's error does neither."""
    generator = np.random.RandomState(0)
    chances = [0.6, 0.5, 0.7, 0.55, 0.8]
    figures = []
    for _ in range(1000):
        shares = [float(right.mean()) for right in decisions(generator, chances)]
        tasks = {
            str(n): Score(value=share, stderr=task_standard_error(share, n), n=n)
            for n, share in zip(SUPPLEMENT, shares, strict=True)
        }
        figures.append(mean_of_tasks(tasks))
    deviation = np.std([figure.value for figure in figures])
    assert np.mean([figure.stderr for figure in figures]) == pytest.approx(deviation, rel=0.07)
    assert np.mean([figure.pooled_stderr for figure in figures]) < 0.5 * deviation
    truth = np.mean(chances)
    covered = [low <= truth <= high for low, high in (figure.interval or (0, 0) for figure in figures)]
    # 1,000 draws have a standard error of 0.7 %; with this seed the share never changes.
    assert 0.93 <= np.mean(covered) <= 0.97


def test_two_equal_models_differ_as_rarely_as_a_test_says() -> None:
    generator = np.random.RandomState(1)
    beyond, significant = [], []
    for _ in range(400):
        first, second = (decisions(generator, [0.6, 0.5, 0.7, 0.55, 0.8]) for _ in range(2))
        differences = [a - b for a, b in zip(first, second, strict=True)]
        error = mean_standard_error([difference_standard_error(task) for task in differences])
        beyond.append(abs(np.mean([task.mean() for task in differences])) > 1.96 * error)
        significant.append(mcnemar_p_value(differences, draws=2000) < 0.05)
    assert 0.02 <= np.mean(beyond) <= 0.07
    assert 0.02 <= np.mean(significant) <= 0.07


def test_a_few_items_that_differ_one_way_are_no_certainty() -> None:
    four = np.array([1] * 4 + [0] * 996)
    assert four.mean() < 1.96 * difference_standard_error(four)
    assert difference_standard_error(np.zeros(1000, dtype=np.int64)) == pytest.approx(1 / 1001, rel=0.01)
    many = np.random.RandomState(0).choice([-1, 0, 1], p=[0.1, 0.7, 0.2], size=4000)
    assert difference_standard_error(many) == pytest.approx(many.std(ddof=1) / math.sqrt(4000), rel=1e-3)


def test_mcnemar_over_tasks_deals_out_the_discordant_items_of_each() -> None:
    """Against all 2^n ways to deal them out."""
    tasks = [np.array([1, 1, 1, -1, 0, 0]), np.array([1, 1, 0, 0, 0, 0, 0, -1, 1, 1])]
    signs = np.array(np.meshgrid(*[[-1, 1]] * 9)).reshape(9, -1)
    sums = signs[:4].sum(axis=0) / 6 + signs[4:].sum(axis=0) / 10
    exact = float((np.abs(sums) >= 2 / 6 + 3 / 10 - 1e-12).mean())
    assert mcnemar_p_value(tasks) == pytest.approx(exact, abs=0.005)
    assert mcnemar_p_value(tasks) == mcnemar_p_value([-task for task in tasks])
    zeros, ones = (np.full(900, value) for value in (0, 1))
    assert mcnemar_p_value([zeros, zeros[1:]]) == 1.0
    assert mcnemar_p_value([ones, ones[1:]]) == 1 / 100_001
    # Tasks of one size are as one task.
    assert mcnemar_p_value([tasks[1], tasks[1]]) == binomtest(8, 10).pvalue


@given(st.integers(2, 30), st.integers(0, 2**31))
def test_equal_units_give_students_interval_of_their_means(count: int, seed: int) -> None:
    values = np.random.RandomState(seed).gamma(2.0, 1.0, size=(count, 3))
    units = np.repeat(np.arange(count), 3)
    found = ratio_estimate(values.ravel(), np.full(3 * count, 2), units, np.zeros(3 * count, dtype=np.int64))
    means = values.mean(axis=1) / 2
    error = means.std(ddof=1) / math.sqrt(count)
    assert [found.value, found.stderr] == pytest.approx([means.mean(), error])
    assert found.interval == pytest.approx(t.interval(0.95, count - 1, loc=means.mean(), scale=error))
    assert found.p_value == pytest.approx(float(2 * t.sf(means.mean() / error, count - 1)))


def test_strata_keep_their_shares() -> None:
    """The error is that of the strata's, however far they lie apart; without them the distance would count."""
    generator = np.random.RandomState(0)
    parts = [generator.normal(level, 0.1, size=12) for level in (3.0, 6.0)]
    values, strata = np.concatenate(parts), np.repeat([0, 1], 12)
    found = ratio_estimate(values, np.ones(24, dtype=np.int64), np.arange(24), strata)
    expected = math.sqrt(sum(part.var(ddof=1) / 12 for part in parts)) / 2
    assert found.stderr == pytest.approx(expected)
    assert 11 < found.degrees <= 22
    # A stratum with a single unit tells nothing of its own error.
    alone = ratio_estimate(values, np.ones(24, dtype=np.int64), np.arange(24), np.array([2, *strata[1:]]))
    assert alone.stderr > 5 * found.stderr


def test_a_single_unit_has_no_interval_and_no_difference_is_none() -> None:
    ones = np.ones(3, dtype=np.int64)
    alone = ratio_estimate(np.array([1.0, 2.0, 3.0]), ones, 0 * ones, 0 * ones)
    assert (alone.value, alone.interval, alone.p_value) == (2.0, None, None)
    same = ratio_estimate(np.zeros(3), ones, np.arange(3), 0 * ones)
    assert (same.interval, same.p_value) == ((0.0, 0.0), 1.0)
    assert ratio_estimate(np.ones(3), ones, np.arange(3), 0 * ones).p_value == 0.0


@pytest.mark.parametrize("sizes", [[50] * 20, [5, 9, 14, 20, 20, 33, 33, 40, 60, 60, 61, 75, 90, 120]])
def test_the_interval_covers_the_truth_where_windows_of_a_document_are_alike(sizes: list[int]) -> None:
    """Windows of a document share half of their variance; 1,000 draws, whose share has a standard error of 0.7 %."""
    generator = np.random.RandomState(2)
    documents = np.repeat(np.arange(len(sizes)), sizes)
    ones, covered, by_window = np.ones(len(documents), dtype=np.int64), [], []
    for _ in range(1000):
        losses = 3 + generator.normal(0, 0.5, len(sizes))[documents] + generator.normal(0, 0.5, len(documents))
        low, high = ratio_estimate(losses, ones, documents, 0 * ones).interval or (0, 0)
        covered.append(low <= 3 <= high)
        by_window.append(abs(losses.mean() - 3) <= 1.96 * losses.std() / math.sqrt(len(losses)))
    assert 0.93 <= np.mean(covered) <= 0.97
    assert np.mean(by_window) < 0.6
