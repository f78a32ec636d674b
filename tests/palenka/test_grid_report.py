"""A grid in the report: its numbers are those of the files, what is missing is said, nothing is claimed beyond them."""

import json
import math
import re
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from html import unescape
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from palenka.eval.results import ModelIdentity, Request, Results, SuiteResult, items_file, write_results
from palenka.eval.suites import SUITES
from palenka.grid.record import GridFiles, GridStage
from palenka.ground.records import write_sealed
from palenka.report.grid.analysis import noise_of, paired_runs, varied_options
from palenka.report.grid.heat_map import draw_legend, readable_on
from palenka.report.grid.seed_chart import SeedDot, draw_seeds, panel_limits
from palenka.report.sources import find_sources
from palenka.report.write import write_report

SEEDS = (0, 1, 2)
LOGIT, HIDDEN = (0.1, 0.5, 0.9), (0.3, 0.7)
WINDOWS = 60
OF_LOSS = {"title": "held-out cross-entropy", "unit": "nats per token", "higher_is_better": False}
Losses = dict[tuple[str, int], Any]
"""The loss of every window of the runs that are finished, by variant and seed."""


def row(variant: str, values: Mapping[str, Any], losses: Losses, seeds: Sequence[int]) -> dict[str, Any]:
    """A row of the ranking, by its definition."""
    there = [seed for seed in seeds if (variant, seed) in losses]
    means = [float(losses[variant, seed].mean()) for seed in there]
    pairs = [
        float(losses[variant, seed].mean() - losses["control", seed].mean())
        for seed in there
        if variant != "control" and ("control", seed) in losses
    ]
    measure = OF_LOSS | {
        "mean": statistics.fmean(means or [0.0]),
        "deviation": statistics.stdev(means) if len(means) > 1 else None,
        "difference": statistics.fmean(pairs) if pairs else None,
        "interval": [min(pairs), max(pairs)] if len(pairs) > 1 else None,
    }
    return {
        "rank": None,
        "variant": variant,
        "role": "control" if variant == "control" else "point",
        "control": "control",
        "values": dict(values),
        "seeds": there,
        "lacking": [seed for seed in seeds if seed not in there],
        "measures": {"held_out": measure} if there else {},
    }


def stage_of(
    variants: Mapping[str, Mapping[str, Any]], losses: Losses, failed: Sequence[str] = (), stage: str = "points"
) -> dict[str, Any]:
    rows = [row(name, values, losses, SEEDS) for name, values in variants.items()]
    rows.sort(key=lambda each: (bool(each["lacking"]), each["measures"].get("held_out", {}).get("mean", 0.0)))
    for place, each in enumerate((each for each in rows if not each["lacking"]), start=1):
        each["rank"] = place
    runs = {
        f"{stage}/{variant}-seed{seed}": {
            "variant": variant,
            "seed": seed,
            "measures": {
                "held_out": OF_LOSS
                | {"value": float(of.mean()), "interval": [of.mean() - 0.1, of.mean() + 0.1], "n": 60}
            },
        }
        for (variant, seed), of in losses.items()
    }
    absent = [f"{stage}/{name}-seed{seed}" for name, seed in product(variants, SEEDS) if (name, seed) not in losses]
    return {
        "ranking": rows,
        "runs": runs,
        "failures": {name: "the loss is nan at step 7" for name in absent if name in failed},
        "untried": [name for name in absent if name not in failed],
    }


def variants_of(options: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, Any]]:
    named: dict[str, dict[str, Any]] = {"control": {}}
    for values in product(*options.values()):
        chosen = dict(zip(options, values, strict=True))
        named["-".join(f"{name.split('.')[-1]}{value}" for name, value in chosen.items())] = chosen
    return named


def losses_of(variants: Mapping[str, Mapping[str, Any]], control: float = 0.3) -> Losses:
    """Losses whose differences between runs are small beside those between windows."""
    hard = np.random.RandomState(0).gamma(9.0, 0.4, size=WINDOWS)
    noise = np.random.RandomState(1)
    return {
        (name, seed): (hard + 0.01 * place + (control if name == "control" else 0.0) + noise.normal(0, 0.05, WINDOWS))
        .astype(np.float32)
        .astype(np.float64)
        for seed in SEEDS
        for place, name in enumerate(variants)
    }


GridFolder = Callable[..., Path]


@pytest.fixture
def grid_folder(tmp_path: Path) -> GridFolder:
    """Writes a grid's output: its ranking, and the measures of its finalists."""

    def write(
        options: Mapping[str, Sequence[Any]] = {"objective.logit": LOGIT, "objective.hidden": HIDDEN},
        without: Sequence[str] = (),
        failed: Sequence[str] = (),
        finalists: Sequence[str] = (),
        control: float = 0.3,
    ) -> Path:
        variants = variants_of(options)
        losses = losses_of(variants, control)
        missing = (*without, *failed)
        left = {key: of for key, of in losses.items() if f"points/{key[0]}-seed{key[1]}" not in missing}
        chosen = {name: variants[name] for name in ("control", *finalists)}
        trained = {
            key: of
            for key, of in losses.items()
            if key[0] in chosen and f"finalists/{key[0]}-seed{key[1]}" not in missing
        }
        folder = tmp_path / "weights"
        for (variant, seed), of in trained.items() if finalists else ():
            write_measures(folder, f"{variant}-seed{seed}", of)
        record = {
            "rank_by": "held_out",
            "points": stage_of(variants, left, failed),
            "finalists": stage_of(chosen, trained, failed, "finalists") if finalists else None,
        }
        folder.mkdir(exist_ok=True)
        write_sealed(folder / "grid.json", record)
        return folder

    return write


def write_measures(folder: Path, name: str, losses: Any) -> None:
    """Held-out losses and minimal pairs of a run."""
    ones = np.ones(len(losses), dtype=np.int64)
    windows = {"task": ["dev"] * len(losses), "tokens": ones, "words": ones, "bytes": ones, "loss": losses}
    windows["unit"] = [f"block {place}" for place in range(len(losses))]
    # Of 40 pairs those of the windows that are easy: fewer for the control.
    good = (losses[:40] < 3.6).astype(float)
    pairs = {"task": ["wh_island"] * 40, "score_good": good, "score_bad": np.full(40, 0.5)}
    items = {
        "held_out": pa.table(windows | {"index": range(len(losses))}),
        "blimp": pa.table(pairs | {"index": range(40)}),
    }
    suites = []
    for suite, table in items.items():
        request = Request(suite=suite, title=SUITES[suite].title, version=1, data="d", conditions={})
        suites.append(SuiteResult(**dict(request), **dict(SUITES[suite].figures(table))))
    results = Results(name=name, model=ModelIdentity(weights=name, config={}), parameters=1, suites=tuple(suites))
    write_results(folder / "measures" / "finalists" / f"{name}.json", results, list(items.values()))


def page_of(folder: Path, out: Path) -> str:
    write_report([folder], out)
    return out.read_text(encoding="utf-8")


def words(html: str) -> str:
    """A page's text without its elements."""
    return " ".join(unescape(re.sub(r"<(style|script).*?</\1>|<[^>]+>", " ", html, flags=re.DOTALL)).split())


def drawing_of(html: str, title: str) -> str:
    """A chart of a page, as a column of a screen has it."""
    (drawing,) = re.findall(rf'<svg class="wide"[^>]*aria-label="{title}".*?</svg>', html, flags=re.DOTALL)
    return str(drawing)


def lines_of(drawing: str, *styles: str) -> list[list[tuple[float, float]]]:
    """Where each line of some styles goes, from a chart's upper left corner."""
    lines = [path for path in re.findall(r"<path[^>]*>", drawing) if all(style in path for style in styles)]
    return [[(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", line)] for line in lines]


def rows_of(html: str, label: str) -> list[list[str]]:
    """The cells of a table's body."""
    (table,) = re.findall(rf'aria-label="{label}">.*?<tbody>(.*?)</tbody>', html, flags=re.DOTALL)
    return [[words(cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", line)] for line in re.findall(r"<tr.*", table)]


def test_the_ranking_says_what_the_files_say_with_the_control_in_its_place(
    grid_folder: GridFolder, tmp_path: Path
) -> None:
    folder = grid_folder(control=0.035)
    html = page_of(folder, tmp_path / "report.html")
    losses = losses_of(variants_of({"objective.logit": LOGIT, "objective.hidden": HIDDEN}), 0.035)
    means = {name: statistics.fmean(float(losses[name, seed].mean()) for seed in SEEDS) for name in dict(losses.keys())}
    table = rows_of(html, "Ranking of weights")
    assert [cells[0] for cells in table] == sorted(means, key=lambda name: means[name])
    assert [cells[1] for cells in table] == [str(place) for place in range(1, 8)]
    place = [cells[0] for cells in table].index("control")
    assert 0 < place < 6
    assert f'<tr class="control"><th scope="row">control</th><td>{place + 1}</td>' in html
    for name, _, seeds, mean, difference in table:
        assert seeds == "3 of 3"
        assert mean.startswith(f"{means[name]:.4f} ± ")
        expected = "–" if name == "control" else f"{means[name] - means['control']:+.4f}".replace("-", "−")
        assert difference.startswith(expected)


def test_every_cell_of_the_heat_map_has_its_mean_and_its_difference(grid_folder: GridFolder, tmp_path: Path) -> None:
    folder = grid_folder()
    html = page_of(folder, tmp_path / "report.html")
    drawing = drawing_of(html, "Held-out cross-entropy over the grid")
    for each in GridFiles(folder).read().points.ranking:
        measure = each.measures["held_out"]
        if each.is_control:
            assert f"control {measure.mean:.4f} →" in drawing
        else:
            assert f">{measure.mean:.4f}<" in drawing
            assert f">{measure.difference:+.4f}<".replace("-", "−") in drawing
    assert "objective.logit" in drawing
    assert "objective.hidden" in drawing
    assert "lowest cell is outlined" in words(html)
    assert "its own section" in words(html)
    lowest = min(each.measures["held_out"].mean for each in GridFiles(folder).read().points.ranking)
    (place,) = re.findall(rf'x="(\S+)" y="(\S+)">{lowest:.4f}<', drawing)
    (frame,) = lines_of(drawing, "stroke: #ffffff; stroke-width: 2.2")
    for axis in (0, 1):
        assert min(corner[axis] for corner in frame) < float(place[axis]) < max(corner[axis] for corner in frame)


def test_numbers_that_have_no_room_are_left_to_the_ranking(grid_folder: GridFolder, tmp_path: Path) -> None:
    options = {"objective.logit": LOGIT, "objective.hidden": tuple(range(12))}
    html = page_of(grid_folder(options=options), tmp_path / "report.html")
    drawing = drawing_of(html, "Held-out cross-entropy over the grid")
    assert "−0." in drawing  # what a cell tells
    assert ">−0." not in drawing
    assert "the ranking has the numbers" in words(html)
    assert "and beneath it the difference" not in words(html)


def test_numbers_that_have_room_on_a_screen_alone_are_said_to(grid_folder: GridFolder, tmp_path: Path) -> None:
    options = {"objective.logit": LOGIT, "objective.hidden": tuple(range(8))}
    html = page_of(grid_folder(options=options), tmp_path / "report.html")
    assert ">−0." in drawing_of(html, "Held-out cross-entropy over the grid")
    assert "and beneath it the difference from the control (on a phone the ranking has the numbers)" in words(html)


def test_what_failed_or_did_not_run_is_marked_and_said(grid_folder: GridFolder, tmp_path: Path) -> None:
    failed = [f"points/logit0.1-hidden0.3-seed{seed}" for seed in SEEDS]
    without = [f"points/logit0.5-hidden0.3-seed{seed}" for seed in SEEDS] + ["points/logit0.9-hidden0.7-seed1"]
    html = page_of(grid_folder(without=without, failed=failed), tmp_path / "report.html")
    drawing = drawing_of(html, "Held-out cross-entropy over the grid")
    assert [drawing.count(f">{note}<") for note in ("failed", "not run", "2 of 3")] == [1, 1, 1]
    text = words(html)
    assert "Hatched, 3 of 6: seeds failed or did not run" in text
    assert f"{', '.join(failed)} failed: the loss is nan at step 7." in text
    assert "4 of 21 never began: points/logit0.5-hidden0.3-seed0" in text
    assert "There are no finalists yet" in text
    table = {cells[0]: cells for cells in rows_of(html, "Ranking of weights")}
    assert table["logit0.1-hidden0.3"][1:] == ["–", "0 of 3", "–", "–"]
    assert table["logit0.9-hidden0.7"][1:3] == ["–", "2 of 3"]
    # A mean over fewer seeds could win by luck.
    assert "the best of 3 variants" in text


def test_without_a_control_or_any_run_nothing_is_compared(grid_folder: GridFolder, tmp_path: Path) -> None:
    controls = [f"points/control-seed{seed}" for seed in SEEDS]
    text = words(page_of(grid_folder(without=controls), tmp_path / "report.html"))
    assert "No variant of weights has all its seeds and a control yet" in text
    assert "No run of the control is finished" in text
    everything = [f"points/{name}-seed{seed}" for name in variants_of({"a.b": (1, 2)}) for seed in SEEDS]
    text = words(page_of(grid_folder(options={"a.b": (1, 2)}, without=everything), tmp_path / "report.html"))
    assert "9 of 9 never began" in text


@pytest.mark.parametrize(
    ("options", "maps", "charts"),
    [
        ({"objective.logit": LOGIT}, 0, 1),
        ({"objective.logit": LOGIT, "objective.hidden": HIDDEN, "epochs": (4,)}, 1, 2),
        ({"objective.logit": LOGIT, "objective.divergence": ("forward", "js")}, 0, 2),
        ({"objective.logit": (0.1, 0.5), "objective.hidden": HIDDEN, "objective.hard": (0, 1)}, 0, 3),
        ({"objective.logit": (0.1,)}, 0, 0),
    ],
)
def test_the_charts_are_those_that_the_varied_options_allow(
    options: dict[str, Sequence[Any]], maps: int, charts: int, grid_folder: GridFolder, tmp_path: Path
) -> None:
    html = page_of(grid_folder(options=options), tmp_path / "report.html")
    titles = re.findall(r'<svg class="wide"[^>]*aria-label="Held-out cross-entropy over ([^"]*)"', html)
    assert titles.count("the grid") == maps
    assert [title for title in titles if title != "the grid"] == [
        name for name, values in options.items() if len(values) > 1
    ]
    assert len(titles) == maps + charts


def test_every_run_is_a_dot_and_every_control_a_dashed_line() -> None:
    dots = [SeedDot(place, seed, 3.0 + 0.1 * place + 0.01 * seed) for place in range(3) for seed in (0, 7)]
    controls = [SeedDot(None, 0, 3.5), SeedDot(None, 7, 3.6), SeedDot(1, 7, 3.7)]
    axes = Figure().add_subplot()
    axes.set_xlim(-0.5, 2.5)
    draw_seeds(axes, dots, controls, [0, 7])
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert [(np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist()) for line in dashed] == [
        ([-0.5, 2.5], [3.5, 3.5]),
        ([-0.5, 2.5], [3.6, 3.6]),
        ([0.55, 1.45], [3.7, 3.7]),
    ]
    drawn = {
        (round(x), y)
        for line in axes.lines
        if line not in dashed
        for x, y in zip(np.asarray(line.get_xdata()), np.asarray(line.get_ydata()), strict=True)
    }
    assert drawn == {(dot.place, dot.loss) for dot in dots}
    looks = {(line.get_color(), line.get_marker()) for line in axes.lines if line not in dashed}
    assert len(looks) == len({colour for colour, _ in looks}) == len({marker for _, marker in looks}) == 2


@given(st.lists(st.floats(1, 9), max_size=9), st.lists(st.floats(1, 9), max_size=3))
def test_no_run_and_no_control_lies_outside_the_panels(runs: list[float], controls: list[float]) -> None:
    limits = panel_limits(runs, controls)
    assert all(low < high for low, high in limits)
    for loss in [*runs, *controls]:
        assert sum(low <= loss <= high for low, high in limits) == 1
    assert all(above[0] > below[1] for above, below in pairwise(limits))


@pytest.mark.parametrize("level", [2.0, 3.02, 3.15, 9.0])
def test_the_controls_level_is_marked_in_the_legend(level: float) -> None:
    axes = Figure().add_subplot()
    draw_legend(axes, 3.0, 3.1, [level], mpl.colormaps["cividis"])
    (text,) = [text for text in axes.texts if text.get_text()]
    assert f"control {level:.4f}" in text.get_text()
    low, high = axes.get_xlim()
    if low < level < high:
        (mark,) = axes.lines
        assert low + float(np.asarray(mark.get_xdata())[0]) * (high - low) == pytest.approx(level)
    else:
        assert text.get_text().endswith("→") if level > high else text.get_text().startswith("←")


@given(st.floats(0, 1))
def test_numbers_on_every_colour_can_be_read(share: float) -> None:
    colour = mpl.colormaps["cividis"](share)
    luminances = sorted(_luminance(each) for each in (colour, mpl.colors.to_rgba(readable_on(colour))))
    assert (luminances[1] + 0.05) / (luminances[0] + 0.05) >= 4.5


def _luminance(colour: Sequence[float]) -> float:
    """As the WCAG 2.2 define it."""
    parts = [part / 12.92 if part <= 0.04045 else math.pow((part + 0.055) / 1.055, 2.4) for part in colour[:3]]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True))


def test_finalists_are_tested_against_the_control_of_their_seed(grid_folder: GridFolder, tmp_path: Path) -> None:
    folder = grid_folder(finalists=["logit0.5-hidden0.7", "logit0.1-hidden0.3"])
    html = page_of(folder, tmp_path / "report.html")
    losses = losses_of(variants_of({"objective.logit": LOGIT, "objective.hidden": HIDDEN}))
    table = rows_of(html, "Each finalist's run against its control")
    assert len(table) == 6
    for name, seed, level, control, difference, _, p_value in table:
        ours, theirs = losses[name, int(seed)], losses["control", int(seed)]
        assert level.startswith(f"{ours.mean():.4f} {ours.mean() - 0.1:.4f} to ")
        assert control == f"{theirs.mean():.4f}"
        found, low, high = (
            float(part.replace("−", "-"))
            for part in re.fullmatch(r"(\S+) (\S+) to (\S+)", difference).groups()  # type: ignore[union-attr]
        )
        error = float((ours - theirs).std(ddof=1)) / math.sqrt(WINDOWS)
        assert found == pytest.approx((ours - theirs).mean(), abs=1e-4)
        assert (low, high) == pytest.approx((found - 1.96 * error, found + 1.96 * error), abs=0.3 * error)
        # McNemar's exact test from the binomial: the control is never right alone.
        alone = int(((ours[:40] < 3.6) & (theirs[:40] >= 3.6)).sum())
        assert not ((ours[:40] >= 3.6) & (theirs[:40] < 3.6)).any()
        assert p_value == f"{min(1.0, 2 * 0.5**alone):.2g}"
    assert "The paired test asks how far" in words(html)
    assert "McNemar's exact test counts" in words(html)
    best = statistics.fmean(
        float((losses["control", seed] - losses["logit0.1-hidden0.3", seed]).mean()) for seed in SEEDS
    )
    assert f"logit0.1-hidden0.3 ends {best:.4f} nats per token below its control" in words(html)
    assert "the best of 2 finalists, which are the best of 6 variants, trained again with other settings" in words(html)
    drawing = drawing_of(html, "Finalists less their controls")
    ((zero, _),) = {tuple(line[0]) for line in lines_of(drawing, "stroke-dasharray")}
    dots = [float(x) for x in re.findall(r'<use [^>]*x="(\S+)"[^>]*fill: var\(--c-(?:0072b2|d55e00|009e73)\)', drawing)]
    # Left of the rule the finalist is better.
    assert len(dots) == 6
    assert max(dots) < zero


@pytest.mark.usefixtures("no_drawings")
def test_a_single_finalist_was_not_picked_among_finalists(grid_folder: GridFolder, tmp_path: Path) -> None:
    text = words(page_of(grid_folder(finalists=["logit0.5-hidden0.7"]), tmp_path / "report.html"))
    assert "It was picked as the best of 6 variants and trained again with other settings but the same seeds" in text
    assert "part of the luck of that choice stays" in text


@pytest.mark.usefixtures("no_drawings")
@pytest.mark.parametrize(
    ("control", "finalists", "verdict"),
    [
        (0.3, (), "separated before allowing for the choice among 6"),
        (0.3, ("logit0.5-hidden0.7",), "separated before allowing for the choice among 6"),
        (0.012, (), "not separated"),
        (-0.3, (), "separated"),
    ],
)
def test_the_first_sentence_claims_no_more_than_the_interval_and_the_choice_allow(
    control: float, finalists: Sequence[str], verdict: str, grid_folder: GridFolder, tmp_path: Path
) -> None:
    html = page_of(grid_folder(control=control, finalists=finalists), tmp_path / "report.html")
    (headline,) = re.findall("<h1>(.*?)</h1>", html)
    assert headline.endswith(f" its control, the mean over 3 seeds: {verdict}")


@pytest.mark.usefixtures("no_drawings")
def test_a_single_variant_was_not_chosen(grid_folder: GridFolder, tmp_path: Path) -> None:
    html = page_of(grid_folder(options={"objective.logit": (0.1,)}), tmp_path / "report.html")
    (headline,) = re.findall("<h1>(.*?)</h1>", html)
    assert headline.endswith(": separated")


@pytest.mark.usefixtures("no_drawings")
def test_a_study_keeps_its_own_first_sentence(grid_folder: GridFolder, tmp_path: Path) -> None:
    folder = grid_folder(finalists=["logit0.5-hidden0.7"])
    write_sealed(tmp_path / "seconds.json", {})
    (headline,) = re.findall("<h1>(.*?)</h1>", page_of(folder, tmp_path / "of_grid.html"))
    html = page_of(tmp_path, tmp_path / "of_study.html")
    assert "<h1>No distilled student is among these models</h1>" in html
    assert f'<p class="lede">{headline}</p>' in html


def test_each_controls_level_and_only_whole_means_are_drawn_over_an_option(
    grid_folder: GridFolder, tmp_path: Path
) -> None:
    folder = grid_folder(control=0.035, without=["points/logit0.9-hidden0.7-seed1"])
    drawing = drawing_of(page_of(folder, tmp_path / "report.html"), "Held-out cross-entropy over objective.logit")
    levels = lines_of(drawing, "clip-path", "stroke-dasharray")
    assert len(levels) == len({line[0] for line in levels}) == len(SEEDS)
    # 0.9 lacks a run: a mean over the others alone would not compare.
    (means,) = lines_of(drawing, "clip-path", "stroke: var(--c-1b1f24); stroke-width: 1.6")
    assert len(means) == len(LOGIT) - 1


@pytest.mark.usefixtures("no_drawings")
@pytest.mark.parametrize(
    ("unfinished", "told"),
    [
        (["control-seed1"], "control-seed1"),
        (["logit0.5-hidden0.7-seed2", "control-seed0"], "control-seed0, logit0.5-hidden0.7-seed2"),
        ([f"logit0.5-hidden0.7-seed{seed}" for seed in SEEDS], ", ".join(f"logit0.5-hidden0.7-seed{n}" for n in SEEDS)),
        ([f"control-seed{seed}" for seed in SEEDS], ", ".join(f"control-seed{seed}" for seed in SEEDS)),
    ],
)
@pytest.mark.parametrize("how", ["failed", "without"])
def test_finalists_without_a_test_are_told_from_losses_that_were_not_kept(
    how: str, unfinished: Sequence[str], told: str, grid_folder: GridFolder, tmp_path: Path
) -> None:
    missing = {how: [f"finalists/{name}" for name in unfinished]}
    text = words(page_of(grid_folder(finalists=["logit0.5-hidden0.7"], **missing), tmp_path / "report.html"))
    assert f"No paired test where a finalist or its control is not finished: {told}." in text
    assert "The losses of the windows were not kept" not in text
    assert ("The paired test asks" in text) == (len(unfinished) < len(SEEDS))


def test_finalists_of_which_none_is_finished_have_no_charts(grid_folder: GridFolder, tmp_path: Path) -> None:
    without = [f"finalists/{name}-seed{seed}" for name in ("control", "logit0.5-hidden0.7") for seed in SEEDS]
    html = page_of(grid_folder(finalists=["logit0.5-hidden0.7"], without=without), tmp_path / "report.html")
    assert "6 of 6 never began: finalists/control-seed0" in words(html)
    assert "Held-out cross-entropy of the finalists" not in html


@pytest.mark.usefixtures("no_drawings")
def test_losses_that_were_not_kept_are_said_to_be_missing(grid_folder: GridFolder, tmp_path: Path) -> None:
    folder = grid_folder(finalists=["logit0.5-hidden0.7"])
    for path in (folder / "measures" / "finalists").glob("*.json"):
        items_file(path).unlink()
    html = page_of(folder, tmp_path / "report.html")
    assert "The losses of the windows were not kept, so" in words(html)
    assert "is not finished" not in words(html)
    assert all(cells[4] == "–" for cells in rows_of(html, "Each finalist's run against its control"))


def test_finalists_of_other_windows_are_refused(
    grid_folder: GridFolder, tmp_path: Path, refused: Callable[..., str]
) -> None:
    folder = grid_folder(finalists=["logit0.5-hidden0.7"])
    write_measures(folder, "control-seed0", np.ones(WINDOWS - 1))
    error = refused("report", folder, "--out", tmp_path / "report.html")
    assert "seed0.json has item 59 of held_out task dev, but " in error


@pytest.mark.usefixtures("no_drawings")
def test_the_noise_and_the_choice_are_told_in_numbers(grid_folder: GridFolder, tmp_path: Path) -> None:
    folder = grid_folder()
    noise = noise_of(GridFiles(folder).read().points)
    assert noise is not None
    assert (noise.variants, noise.seeds) == (6, 3)
    # Windows' own noise of 0.05 over 60 windows, and the best of six stands out by 1.267 deviations (Harter 1961).
    assert noise.of_run == pytest.approx(0.05 / math.sqrt(WINDOWS), rel=0.4)
    assert noise.of_choice == pytest.approx(1.26721 * (noise.of_run or 0.0) / math.sqrt(3), rel=1e-4)
    text = words(page_of(folder, tmp_path / "report.html"))
    assert f"the best would still look about {noise.of_choice:.4f} better" in text
    assert "21 of 21: 6 variants and 1 control, 3 seeds" in text
    assert "Intervals are for one comparison each, not for 6." in text


def test_values_are_in_the_order_of_numbers_or_of_the_file() -> None:
    plain = stage_of(
        variants_of({"a.x": (10, 2, 0.5), "a.y": ("js", "forward"), "a.flag": (True, False)}),
        {},
    )
    x, y, flag = varied_options(GridStage.model_validate(plain))
    assert (x.values, x.is_number, x.labels) == ((0.5, 2, 10), True, ["0.5", "2", "10"])
    assert (y.values, y.is_number) == (("js", "forward"), False)
    assert (flag.labels, flag.is_number) == (["true", "false"], False)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("{", "is damaged: it is not a JSON object; write it again with `palenka grid rank"),
        ("{}", "cannot be read: rank_by: field required"),
        ('{"rank_by": "held_out", "points": 3, "finalists": null}', "cannot be read: points: "),
        (None, "holds points of a grid, but no grid.json with their ranking; write it with `palenka grid rank"),
    ],
)
def test_a_ranking_that_is_damaged_or_missing_is_told(
    damage: str | None, message: str, grid_folder: GridFolder, tmp_path: Path, refused: Callable[..., str]
) -> None:
    folder = grid_folder()
    (folder / "points" / "control-seed0").mkdir(parents=True)
    (folder / "grid.json").unlink()
    if damage == "{":
        (folder / "grid.json").write_text(damage)
    elif damage is not None:
        write_sealed(folder / "grid.json", json.loads(damage))
    error = refused("report", folder, "--out", tmp_path / "report.html")
    assert str(folder) in error
    assert message in error
    assert not (tmp_path / "report.html").exists()


def test_runs_of_variants_that_are_not_ranked_are_refused(
    grid_folder: GridFolder, tmp_path: Path, refused: Callable[..., str]
) -> None:
    path = grid_folder() / "grid.json"
    record = json.loads(path.read_text())
    del record["checksum"]
    record["points"]["ranking"].pop()
    write_sealed(path, record)
    assert "is not in the ranking" in refused("report", path.parent, "--out", tmp_path / "report.html")


def test_a_grid_that_still_runs_does_not_keep_others_from_their_report(grid_folder: GridFolder, tmp_path: Path) -> None:
    (tmp_path / "runs" / "young" / "points").mkdir(parents=True)
    (tmp_path / "runs" / "young" / "points" / "control-seed0.failure.json").write_text("{}")
    (grid_folder()).rename(tmp_path / "runs" / "old")
    text = words(page_of(tmp_path / "runs", tmp_path / "report.html"))
    assert "young holds points of a grid that are not ranked yet" in text
    assert "Ranking of old" in text


def test_points_are_not_among_the_models_and_finalists_are(grid_folder: GridFolder) -> None:
    folder = grid_folder(finalists=["logit0.5-hidden0.7"])
    (folder / "measures" / "points").mkdir()
    shutil.copy(next((folder / "measures" / "finalists").glob("*.json")), folder / "measures" / "points" / "x.json")
    (folder / "points" / "x-seed0").mkdir(parents=True)
    for name in ("config.yaml", "metrics.jsonl"):
        (folder / "points" / "x-seed0" / name).write_text("")
    sources = find_sources([folder])
    assert sources.unfinished == []
    assert {path.parent.name for path, _ in sources.results} == {"finalists"}
    assert len(sources.results) == 2 * len(SEEDS)


def test_pairs_of_runs_are_those_that_are_finished(grid_folder: GridFolder) -> None:
    folder = grid_folder(finalists=["logit0.5-hidden0.7"])
    finalists = GridFiles(folder).read().finalists
    assert finalists is not None
    plain = finalists.model_dump()
    plain["runs"] = {name: run for name, run in plain["runs"].items() if name != "finalists/control-seed1"}
    pairs = paired_runs(folder, GridStage.model_validate(plain))
    assert [(pair.run.seed, pair.control is None, pair.comparison.windows is None) for pair in pairs] == [
        (0, False, False),
        (1, True, True),
        (2, False, False),
    ]
