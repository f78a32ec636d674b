"""Analysis of a grid: its varied options, the cells of its heat map, its noise, its finalists beside their controls."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from palenka.eval.statistics import expected_maximum, residual_deviation
from palenka.grid.record import HELD_OUT, GridFiles, GridRow, GridRun, GridStage, run_name
from palenka.report.results import Comparison, compare_measures


@dataclass(frozen=True)
class Option:
    """An option that a grid varies.

    Attributes:
        name: dotted, as in the student's settings.
        values: that it takes, numbers ascending, others in the order of the ranking.
    """

    name: str
    values: tuple[Any, ...]

    @property
    def is_number(self) -> bool:
        """Whether all its values are numbers."""
        return all(_is_number(value) for value in self.values)

    @property
    def labels(self) -> list[str]:
        """Its values as text."""
        return [value if isinstance(value, str) else json.dumps(value) for value in self.values]

    def place(self, row: GridRow) -> int | None:
        """The place of a variant's value among the values; None for a control without the option."""
        return self.values.index(row.values[self.name]) if self.name in row.values else None


@dataclass(frozen=True)
class Noise:
    """The noise of seeds in a grid's differences.

    Attributes:
        variants: with every seed, without controls.
        seeds: of each.
        span: the largest mean less the smallest, in nats per token.
        of_run: deviation of a run without its seed's common effect; None for a single seed or variant.
    """

    variants: int
    seeds: int
    span: float
    of_run: float | None

    @property
    def of_mean(self) -> float | None:
        """Standard error of a variant's mean over the seeds."""
        return None if self.of_run is None else self.of_run / self.seeds**0.5

    @property
    def of_choice(self) -> float | None:
        """The expected distance of the best from the mean of all, if all were equal."""
        return None if self.of_mean is None else self.of_mean * expected_maximum(self.variants)


@dataclass(frozen=True)
class PairedRun:
    """A finalist's run beside its control's of the same seed.

    Attributes:
        run: the finalist's.
        control: the control's; None if it is not finished.
        comparison: of the two, as far as both were measured.
    """

    run: GridRun
    control: GridRun | None
    comparison: Comparison


def varied_options(stage: GridStage) -> list[Option]:
    """The options with more than one value, in the order of the grid's file."""
    values: dict[str, list[Any]] = {}
    for row in stage.ranking:
        for name, value in {} if row.is_control else row.values.items():
            known = values.setdefault(name, [])
            known += [] if value in known else [value]
    options = []
    for name, found in values.items():
        ordered = sorted(found) if all(map(_is_number, found)) else found
        options += [Option(name, tuple(ordered))] if len(found) > 1 else []
    return options


def controls_of(stage: GridStage) -> list[GridRow]:
    """The measured controls, in the order of the ranking."""
    return [row for row in stage.ranking if row.is_control and HELD_OUT in row.measures]


def noise_of(stage: GridStage) -> Noise | None:
    """The noise of a grid's held-out cross-entropies; None before two variants have every seed."""
    if len(stage.whole) < 2:
        return None
    runs, seeds = stage.by_variant, stage.seeds
    values = np.array([[runs[row.variant, seed].held_out.value for seed in seeds] for row in stage.whole])
    return Noise(len(stage.whole), len(seeds), float(np.ptp(values.mean(axis=1))), residual_deviation(values))


def best_row(stage: GridStage, measure: str) -> GridRow | None:
    """The best variant by a measure among those with every seed, without controls."""
    whole = [row for row in stage.whole if measure in row.measures]
    return min(whole, key=lambda row: row.measures[measure].badness, default=None)


def paired_runs(directory: Path, finalists: GridStage) -> list[PairedRun]:
    """Every finalist's run beside its control's, by rank and seed.

    Raises:
        UserError: if two files that should have the same windows or pairs do not.
    """
    runs = finalists.by_variant
    pairs = []
    for row in finalists.ranking:
        for seed in finalists.seeds if not row.is_control else ():
            run, control = runs.get((row.variant, seed)), runs.get((row.control, seed))
            if run:
                comparison = _compared(directory, row, seed) if control else Comparison(None, {})
                pairs.append(PairedRun(run, control, comparison))
    return pairs


def unfinished_runs(finalists: GridStage) -> tuple[str, ...]:
    """Unfinished runs of finalists and their controls, as names of variant and seed."""
    needed = [
        (variant, seed)
        for row in finalists.ranking
        if not row.is_control
        for seed in finalists.seeds
        for variant in (row.variant, row.control)
    ]
    lacking = [run for run in dict.fromkeys(needed) if run not in finalists.by_variant]
    return tuple(f"{variant}-seed{seed}" for variant, seed in lacking)


def _compared(directory: Path, row: GridRow, seed: int) -> Comparison:
    both = [run_name("finalists", name, seed) for name in (row.variant, row.control)]
    return compare_measures(*(GridFiles(directory).measures(run) for run in both))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
