"""Whether 95 % intervals cover the truth, and how often equal models look different: simulations with known answers.

    python -m benchmarks.interval_coverage suites --evaluation DATA/evaluation
    python -m benchmarks.interval_coverage text --sources TEXT --output FOLDER

`suites` draws right answers of models with known accuracies, in tasks of the sizes that the files of DATA have. `text`
trains two small models on part of TEXT (*.train and *.dev), measures them on all windows of the train split, and takes
these real losses as the population: held-out splits are drawn from them, by documents or as stretches of the stream.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from palenka.data.corpus import Corpus
from palenka.eval.decisions import mean_of_tasks
from palenka.eval.statistics import (
    difference_standard_error,
    mcnemar_p_value,
    mean_standard_error,
    normal_interval,
    ratio_estimate,
    share_interval,
    task_standard_error,
)
from palenka.eval.suite import Figure, Score
from palenka.eval.text_units import text_units

SIMULATIONS = 2000
LENGTH = 64
AGREEING = 0.6
"""Of what one model gets right or wrong by chance, how much the other does too."""


@dataclass
class Shares:
    """How often each of some things happened, by name."""

    counts: dict[str, list[bool]]

    def add(self, **happened: bool) -> None:
        """Note a simulation."""
        for name, value in happened.items():
            self.counts.setdefault(name, []).append(value)

    def row(self, name: str) -> str:
        """A line of a table, in %."""
        cells = [f"{name}", *(f"{100 * np.mean(values):.1f}" for values in self.counts.values())]
        return f"| {' | '.join(cells)} |"

    def heading(self) -> str:
        """The table's head."""
        return f"| | {' | '.join(self.counts)} |\n{'|---' * (len(self.counts) + 1)}|"


def main() -> None:
    """Run one of the two simulations and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    commands.add_parser("suites").add_argument("--evaluation", type=Path, required=True)
    text = commands.add_parser("text")
    for name in ("sources", "output"):
        text.add_argument(f"--{name}", type=Path, required=True)
    given = parser.parse_args()
    tables = _suites(given.evaluation) if given.command == "suites" else _text(given.sources, given.output)
    for number, (name, shares) in enumerate(tables):
        print(*([shares.heading()] if number == 0 else []), shares.row(name), sep="\n", flush=True)


def _suites(evaluation: Path) -> Iterator[tuple[str, Shares]]:
    for folder in ("supplement_filtered", "blimp_filtered", "entity_tracking"):
        files = sorted((evaluation / folder).glob("*.jsonl"))
        sizes = [sum(1 for _ in file.open("rb")) for file in files]
        yield f"{folder}, {len(sizes)} tasks of {min(sizes)} to {max(sizes)}", _simulate_suite(sizes)
    yield "one task of 64", _simulate_suite([64])


def _simulate_suite(sizes: list[int]) -> Shares:
    """Each simulation has accuracies of its own in the tasks, about 0.7, for the first model and for a worse one."""
    generator, shares = np.random.RandomState(0), Shares({})
    for _ in range(SIMULATIONS):
        accuracies = generator.beta(7, 3, size=len(sizes))
        worse = np.clip(accuracies - generator.uniform(0, 0.1, size=len(sizes)), 0, 1)
        common = [generator.random_sample(size) for size in sizes]

        def answers(
            chances: NDArray[np.float64], common: list[NDArray[np.float64]] = common
        ) -> list[NDArray[np.bool_]]:
            """Right answers; a part of the items are as easy for one model as for the other."""
            drawn = []
            for chance, shared in zip(chances, common, strict=True):
                own = generator.random_sample(len(shared))
                drawn.append(np.where(generator.random_sample(len(shared)) < AGREEING, shared, own) < chance)
            return drawn

        first, equal, other = answers(accuracies), answers(accuracies), answers(worse)
        ours, twin = _figure(first), _figure(equal)
        assert ours.interval is not None
        assert twin.interval is not None
        assert ours.pooled_stderr is not None
        assert twin.pooled_stderr is not None
        truth, pooled = float(accuracies.mean()), normal_interval(ours.value, ours.pooled_stderr)
        twins_pooled = normal_interval(twin.value, twin.pooled_stderr)
        _, paired = _paired(first, other)
        tested, equals = _paired(first, equal)
        shares.add(
            level=_covers(ours.interval, truth),
            level_by_pooled_error=_covers(pooled, truth),
            paired_difference=_covers(paired, truth - float(worse.mean())),
            equal_models_separated=_apart(ours.interval, twin.interval),
            equal_models_separated_by_pooled_error=_apart(pooled, twins_pooled),
            equal_models_paired_interval_without_0=not _covers(equals, 0.0),
            equal_models_p_below_5=mcnemar_p_value(tested, draws=2000) < 0.05,
        )
    return shares


def _figure(tasks: list[NDArray[np.bool_]]) -> Figure:
    scores = {}
    for number, right in enumerate(tasks):
        share, count = float(right.mean()), len(right)
        error, interval = task_standard_error(share, count), share_interval(share, count)
        scores[str(number)] = Score(value=share, stderr=error, interval=interval, n=count)
    return mean_of_tasks(scores)


def _paired(
    first: list[NDArray[np.bool_]], second: list[NDArray[np.bool_]]
) -> tuple[list[NDArray[np.int64]], tuple[float, float]]:
    differences = [a.astype(np.int64) - b for a, b in zip(first, second, strict=True)]
    error = mean_standard_error([difference_standard_error(task) for task in differences])
    return differences, normal_interval(float(np.mean([task.mean() for task in differences])), error)


@dataclass(frozen=True)
class _Split:
    """What `text_units` asks of a corpus."""

    document_starts: NDArray[np.int64]
    sources: tuple[Any, ...]


Draw = Callable[[np.random.RandomState], tuple[NDArray[np.int64], NDArray[np.int64]]]
"""Draws a held-out split: its windows, and how many of them each of its documents has."""


def _text(sources: Path, output: Path) -> Iterator[tuple[str, Shares]]:
    population = _population(sources, output)
    whole = {source: losses for source, (losses, lengths) in population.items() if len(lengths) < 100}
    for part in (8, 16) if len(whole) > 1 else ():
        yield f"{len(whole)} sources, a stretch of 1/{part} of each", _simulate_sources([*whole.values()], part)
    for source, (losses, lengths) in population.items():
        if len(lengths) < 100:
            size = len(losses[0]) // 8
            yield f"{source}: stretches of {size} windows", _simulate_text(losses, _stretch(len(losses[0]), size))
            continue
        for count in (20, 100, 500):
            if count * float(np.median(lengths)) > 400:
                draw = _documents(lengths, count)
                yield f"{source}: {count} of {len(lengths)} documents", _simulate_text(losses, draw)
                if count > 20:
                    yield f"{source}: {count}, boundaries unknown", _simulate_text(losses, _as_one(draw))


def _documents(lengths: NDArray[np.int64], count: int) -> Draw:
    ends = np.cumsum(lengths)

    def draw(generator: np.random.RandomState) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        chosen = generator.randint(0, len(lengths), size=count)
        windows = np.concatenate([np.arange(ends[each] - lengths[each], ends[each]) for each in chosen])
        return windows, lengths[chosen]

    return draw


def _as_one(draw: Draw) -> Draw:
    """The same as a single document, which has to be cut into blocks."""

    def draw_as_one(generator: np.random.RandomState) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        windows, lengths = draw(generator)
        return windows, np.array([lengths.sum()])

    return draw_as_one


def _stretch(count: int, size: int) -> Draw:
    def draw(generator: np.random.RandomState) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return (generator.randint(count) + np.arange(size)) % count, np.array([size])

    return draw


def _simulate_text(
    losses: tuple[NDArray[np.float64], NDArray[np.float64]],
    draw: Draw,
) -> Shares:
    """Held-out splits that are drawn from a population, whose means are the truth."""
    generator, shares = np.random.RandomState(0), Shares({})
    first, second = losses
    truth, difference = float(first.mean()), float((first - second).mean())
    for _ in range(SIMULATIONS):
        windows, lengths = draw(generator)
        starts = np.cumsum([0, *lengths[:-1]])
        record = argparse.Namespace(path="text", counts=argparse.Namespace(tokens=int(lengths.sum())))
        found = text_units(_Split(starts, (record,)), np.arange(len(windows)))  # type: ignore[arg-type]
        units, ones = np.unique(found.units, return_inverse=True)[1], np.ones(len(windows), dtype=np.int64)
        level, paired = (ratio_estimate(of[windows], ones, units, 0 * ones) for of in (first, first - second))
        by_window = [
            normal_interval(float(of[windows].mean()), float(of[windows].std()) / len(windows) ** 0.5)
            for of in (first, first - second)
        ]
        assert level.interval is not None
        assert paired.interval is not None
        shares.add(
            level=_covers(level.interval, truth),
            level_by_window=_covers(by_window[0], truth),
            paired_difference=_covers(paired.interval, difference),
            paired_difference_by_window=_covers(by_window[1], difference),
            by_documents=found.units[0].startswith("documents"),
        )
    return shares


def _simulate_sources(sources: list[tuple[NDArray[np.float64], NDArray[np.float64]]], part: int) -> Shares:
    """Splits of a stretch of each source, none of which has a boundary inside: sources are strata, blocks are drawn."""
    generator, shares = np.random.RandomState(0), Shares({})
    sizes = [len(first) // part for first, _ in sources]
    record = [argparse.Namespace(path=str(n), counts=argparse.Namespace(tokens=size)) for n, size in enumerate(sizes)]
    split = _Split(np.cumsum([0, *sizes[:-1]]), tuple(record))
    found = text_units(split, np.arange(sum(sizes)))  # type: ignore[arg-type]
    strata = np.repeat(np.arange(len(sizes)), sizes)
    units = np.unique(np.char.add(found.sources, found.units), return_inverse=True)[1]
    weights = np.array(sizes) / sum(sizes)
    truths = [float(weights @ [of.mean() for of in each]) for each in _both(sources)]
    for _ in range(SIMULATIONS):
        places = [_stretch(len(first), size)(generator)[0] for (first, _), size in zip(sources, sizes, strict=True)]
        covered = []
        for each, truth in zip(_both(sources), truths, strict=True):
            values = np.concatenate([of[at] for of, at in zip(each, places, strict=True)])
            interval = ratio_estimate(values, np.ones(len(values), dtype=np.int64), units, strata).interval
            assert interval is not None
            covered.append(_covers(interval, truth))
        shares.add(level=covered[0], paired_difference=covered[1])
    return shares


def _both(
    sources: list[tuple[NDArray[np.float64], NDArray[np.float64]]],
) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    """Of each source the first model's losses, and the differences."""
    return [first for first, _ in sources], [first - second for first, second in sources]


def _population(
    sources: Path, output: Path
) -> Mapping[str, tuple[tuple[NDArray[np.float64], NDArray[np.float64]], NDArray[np.int64]]]:
    """Of each source the losses of two models in its windows, and how many windows its documents have."""
    from palenka.data.text.prepare import CorpusSettings, prepare

    prepare(CorpusSettings(sources=sources, output=output / "corpus", vocabulary_size=2048))
    corpus = Corpus.open(output / "corpus", "train")
    losses = [_losses(corpus, output / name, size) for name, size in (("smaller", 48), ("larger", 64))]
    starts = np.arange(len(losses[0])) * LENGTH
    document_of = np.searchsorted(corpus.document_starts, starts, side="right")
    ends = np.cumsum([source.counts.tokens for source in corpus.sources])
    source_of, population = np.searchsorted(ends, starts, side="right"), {}
    for number, source in enumerate(corpus.sources):
        here = source_of == number
        lengths = np.unique(document_of[here], return_counts=True)[1]
        population[source.path] = ((losses[0][here], losses[1][here]), lengths)
    return population


def _losses(corpus: Corpus, folder: Path, size: int) -> NDArray[np.float64]:
    """The losses of a model of that width in all windows of the split, in the order of the text."""
    import torch

    from palenka.data.held_out import window_losses
    from palenka.data.model_files import load_model
    from palenka.data.windows import WindowRule, gather
    from palenka.train_student.settings import TrainSettings
    from palenka.train_student.train import train

    settings = {
        "corpus": corpus.directory,
        "output": folder,
        "model": {
            "architecture": "llama",
            "hidden_size": size,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 3 * size,
            "max_position_embeddings": LENGTH,
        },
        "windows": {"length": LENGTH},
        "fraction": min(1.0, 12_000 * LENGTH / len(corpus.tokens)),
        "optimizer": {"learning_rate": 2e-3},
        "validation": {"windows": 64},
    }
    train(TrainSettings.model_validate(settings))
    kept = folder / "losses.npy"
    if not kept.is_file():
        indices = np.arange(len(corpus.tokens) // LENGTH)
        windows = gather(corpus.tokens, WindowRule(length=LENGTH), 0, indices)
        model = load_model(folder, torch.device("cpu"))
        np.save(kept, np.concatenate(list(window_losses(model, windows, corpus.vocabulary_size, 32))))
    losses: NDArray[np.float64] = np.load(kept)
    return losses


def _covers(interval: tuple[float, float], truth: float) -> bool:
    return interval[0] <= truth <= interval[1]


def _apart(ours: tuple[float, float], theirs: tuple[float, float]) -> bool:
    return ours[1] < theirs[0] or theirs[1] < ours[0]


if __name__ == "__main__":
    main()
