"""`palenka eval MODEL_DIR --suite SUITE --data DIR --out FILE.json`, or `python -m palenka.eval` with the same.

`palenka eval compare A.json B.json` and `palenka eval export FILE.json ...` read its files.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from palenka.eval.suite import Conditions
from palenka.eval.suites import SuiteName, folders_of
from palenka.ground.command_line import parse, run
from palenka.ground.console import console
from palenka.ground.processes import Device, open_processes
from palenka.ground.settings import Command


class EvalSettings(Conditions, Command):
    """Measure a model: the directory of any Hugging Face causal language model with its tokenizer.

    `palenka eval compare A.json B.json` tests two models against each other, and `palenka eval export FILE.json ...`
    makes a table of many; both have their own --help.
    """

    positional: ClassVar[tuple[str, ...]] = ("model",)

    model: Path
    """Directory of the model, or its id on the Hugging Face Hub."""
    data: Path | dict[str, Path] | None = None
    """Folder with the suite's *.jsonl files, or the prepared corpus for held_out. With several suites: a folder with a
    subfolder for each (blimp_filtered, supplement_filtered, ...), or one option for each, as --data.blimp_filtered
    DIR."""
    out: Path
    """JSON file for the figures; their items go beside it, to FILE.parquet."""
    suite: tuple[SuiteName, ...] = ("held_out",)
    """What to measure; one or several, as --suite blimp_filtered blimp_supplement."""
    babylm: Path | None = None
    """Instead of data and suite, BabyLM's evaluation data as downloaded: every suite with files there is measured under
    babylm-2025. A table goes to FILE.md, and predictions in the pipeline's form to results/ beside it."""
    revisions: bool = False
    """Measure the revisions of a run instead of its model, with --babylm on the fast parts of the suites. FILE.json is
    the learning curve, and FILE/REVISION.json has the results of each."""
    device: Device = "auto"
    """Where the model computes: auto is a GPU (cuda, or mps on a Mac) if there is one."""

    @model_validator(mode="after")
    def _data_is_given_once(self) -> Self:
        if (self.data is None) == (self.babylm is None):
            raise ValueError(
                "data and babylm are both given, or neither; give --data DIR, or --babylm DIR for all suites"
            )
        if self.babylm is not None and {"suite", "protocol"} & self.model_fields_set:
            raise ValueError("babylm measures all suites under babylm-2025; leave suite and protocol out, or give data")
        return self

    @model_validator(mode="after")
    def _glue_has_settings_of_its_own(self) -> Self:
        given = sorted({"seeds", "tasks", "limit"} & self.model_fields_set)
        if given and self.babylm is None and "glue" not in self.suite:
            raise ValueError(f"{given[0]} is given, but only glue reads it; leave it out, or measure glue")
        return self

    @model_validator(mode="after")
    def _suites_differ(self) -> Self:
        if not self.suite or len(set(self.suite)) < len(self.suite):
            raise ValueError(
                f"suite is {list(self.suite)}, but it should name at least one suite, and each of them once"
            )
        return self


class CompareSettings(Command):
    """Test whether two models differ on the same items: palenka eval compare A.json B.json."""

    positional: ClassVar[tuple[str, ...]] = ("first", "second")

    first: Path
    """Results of the first model, as `palenka eval` wrote them."""
    second: Path
    """Results of the second model."""
    out: Path | None = None
    """JSON file for the comparison."""


class TableSettings(Command):
    """Make a table of results: palenka eval export A.json B.json ... --format latex --out table.tex."""

    positional: ClassVar[tuple[str, ...]] = ("files",)

    files: tuple[str, ...] = ()
    """Results of `palenka eval`, as FILE.json or NAME=FILE.json."""
    format: Literal["markdown", "csv", "latex"] = "markdown"
    """Form of the table."""
    published: bool = True
    """Whether to put the published rows above ours."""
    overall: bool = False
    """Add the overall figure of the official table of 2026, in %: the mean of its nine columns, with missing ones as
    exact 0. So its error covers only the present columns."""
    out: Path | None = None
    """File for the table; default: print it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line of evaluation; returns the exit status."""
    return run(_evaluate, arguments)


def _evaluate(arguments: Sequence[str]) -> None:
    if arguments[:1] == ["compare"]:
        _compare(arguments[1:])
    elif arguments[:1] == ["export"]:
        _export(arguments[1:])
    else:
        _measure(arguments)


def _measure(arguments: Sequence[str]) -> None:
    settings = parse(EvalSettings, arguments, "palenka eval")
    folders = {} if settings.data is None else folders_of(settings.suite, settings.data)
    from palenka.eval.measure import Measurement, measure
    from palenka.eval.submission import measure_submission
    from palenka.eval.tables import print_results

    open_processes(settings.device)
    if settings.revisions:
        _measure_revisions(settings, folders)
        return
    if settings.babylm is not None:
        results = measure_submission(settings.model, settings.babylm, settings, settings.out)
    else:
        results = measure(Measurement(settings.model, folders, settings), settings.out)
    print_results(results, console(wide=True))
    console(soft_wrap=True).print(f"{settings.model}: written to {settings.out}")


def _measure_revisions(settings: EvalSettings, folders: dict[str, Path]) -> None:
    from palenka.eval.learning_curve import measure_revisions, print_curve
    from palenka.eval.submission import folders_below

    if settings.babylm is None:
        curve = measure_revisions(settings.model, folders, settings, settings.out)
    else:
        folders = folders_below(settings.babylm, fast=True)
        conditions = settings.model_copy(update={"protocol": "babylm-2025"})
        curve = measure_revisions(settings.model, folders, conditions, settings.out, predictions=True)
    print_curve(curve, console(wide=True))
    console(soft_wrap=True).print(f"{settings.model}: {len(curve.revisions)} revisions, written to {settings.out}")


def _compare(arguments: Sequence[str]) -> None:
    settings = parse(CompareSettings, arguments, "palenka eval compare")
    from palenka.eval.compare import compare, print_comparison, require_comparison, write_comparison

    if settings.out is not None:
        require_comparison(settings.out)
    comparison = compare(settings.first, settings.second)
    print_comparison(comparison, console(wide=True))
    if settings.out is not None:
        write_comparison(settings.out, comparison)


def _export(arguments: Sequence[str]) -> None:
    settings = parse(TableSettings, arguments, "palenka eval export")
    from palenka.eval.tables import export, require_table, write_table

    if settings.out is not None:
        require_table(settings.out)
    table = export(settings.files, settings.format, settings.published, settings.overall)
    if settings.out is None:
        sys.stdout.write(table)
    else:
        write_table(settings.out, table)


if __name__ == "__main__":
    sys.exit(main())
