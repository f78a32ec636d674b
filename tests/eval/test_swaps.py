"""Figures that were edited are neither kept, compared, tabled nor ranked; items of another file are measured again."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from palenka.eval.compare import compare
from palenka.eval.measure import Measurement, measure
from palenka.eval.results import items_file, read_items, read_results
from palenka.eval.suite import Conditions
from palenka.eval.tables import export
from palenka.ground.errors import UserError


@pytest.fixture
def asked(teacher: Path, corpus_directory: Path) -> Measurement:
    return Measurement(teacher, {"held_out": corpus_directory}, Conditions(length=16, windows=20))


def test_an_edited_figure_is_refused_everywhere(asked: Measurement, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    measure(asked, out)
    whole = json.loads(out.read_text())
    (suite,) = whole["suites"]
    figure = suite["figures"]["cross_entropy"] | {"value": 0.5}
    for edited in (
        whole | {"suites": [suite | {"figures": suite["figures"] | {"cross_entropy": figure}}]},
        whole | {"suites": [suite | {"conditions": suite["conditions"] | {"length": 8}}]},
        whole | {"model": whole["model"] | {"weights": "0" * 64}},
        whole | {"items": "0" * 64},
        {name: value for name, value in whole.items() if name != "checksum"},
    ):
        out.write_text(json.dumps(edited))
        for read in (
            lambda: measure(asked, out),
            lambda: compare(out, out),
            lambda: export([str(out)], "csv", published=False),
            lambda: read_items(out),
        ):
            with pytest.raises(UserError, match="was changed since `palenka eval` wrote it"):
                read()
    out.write_text(json.dumps(whole))
    assert measure(asked, out) == read_results(out)


def test_results_of_another_model_are_measured_again(
    asked: Measurement, make_teacher: Callable[..., Path], tmp_path: Path
) -> None:
    out, theirs = tmp_path / "a.json", tmp_path / "b.json"
    ours = measure(asked, out)
    measure(Measurement(make_teacher("llama", seed=7), asked.folders, asked.conditions), theirs)
    shutil.copyfile(items_file(theirs), items_file(out))
    with pytest.raises(UserError, match="is missing or not what a.json was made with"):
        read_items(out)
    assert measure(asked, out) == ours
    for path in (out, items_file(out)):
        shutil.copyfile(theirs.with_suffix(path.suffix), path)
    assert measure(asked, out) == ours


def test_items_are_not_written_over_another_table(asked: Measurement, tmp_path: Path) -> None:
    path = tmp_path / "mine.parquet"
    path.write_bytes(b"precious")
    with pytest.raises(UserError, match=r"mine\.parquet, where the items would go, is not of `palenka eval`"):
        measure(asked, tmp_path / "mine.json")
    assert path.read_bytes() == b"precious"
    # What a kill between the two files leaves is ours.
    out = tmp_path / "ours.json"
    ours = measure(asked, out)
    out.unlink()
    assert measure(asked, out) == ours
