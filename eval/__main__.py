"""`palenka eval MODEL_DIR --suite SUITE --data DIR --out FILE.json`, or `python -m eval` with the same.

`palenka eval compare A.json B.json` and `palenka eval export FILE.json ...` work on what that wrote.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import model_validator
from rich.console import Console

from palenka.eval.suite import Conditions
from palenka.eval.suites import SuiteName, folders_of
from palenka.eval.tables import TableFormat
from palenka.ground.command_line import parse, run
from palenka.ground.settings import Settings


class EvalSettings(Conditions):
    """Measure a model: the directory of any Hugging Face causal language model with its tokenizer.

    `palenka eval compare A.json B.json` tests two models against each other, `palenka eval export FILE.json ...`
    makes a table of many; both have a --help of their own.
    """

    model: Path
    """Directory of the model; may stand first, without its name."""
    data: Path | dict[str, Path]
    """Folder with the suite's *.jsonl files, or the prepared corpus for held_out. With several suites: a folder with a
    subfolder for each (blimp_filtered, supplement_filtered, ...), or each by itself, as --data.blimp_filtered DIR."""
    out: Path
    """JSON file for the figures; the items behind them go beside it, to FILE.parquet."""
    suite: tuple[SuiteName, ...] = ("held_out",)
    """What to measure; several may follow each other, as --suite blimp_filtered blimp_supplement."""

    @model_validator(mode="after")
    def _suites_differ(self) -> Self:
        if not self.suite or len(set(self.suite)) < len(self.suite):
            raise ValueError(
                f"suite is {list(self.suite)}, but it should name at least one suite, and each of them once"
            )
        return self


class CompareSettings(Settings):
    """Test whether two models differ on the same items: palenka eval compare A.json B.json."""

    first: Path
    """Results of the first model, as `palenka eval` wrote them; may stand first, without its name."""
    second: Path
    """Results of the second model; may stand second, without its name."""
    out: Path | None = None
    """JSON file for the comparison."""


class ExportSettings(Settings):
    """Make a table of results: palenka eval export A.json B.json ... --format latex --out table.tex."""

    files: tuple[str, ...] = ()
    """Results of `palenka eval`, as FILE.json or NAME=FILE.json; may stand first, without their name."""
    format: TableFormat = "markdown"
    """Form of the table."""
    published: bool = True
    """Whether the published rows stand above ours."""
    out: Path | None = None
    """File for the table; it is printed without one."""


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
    settings = parse(EvalSettings, _as_lists(_named(arguments, ["model"]), "suite"), "palenka eval")
    folders = folders_of(settings.suite, settings.data)
    from palenka.eval.measure import Measurement, measure
    from palenka.eval.tables import print_results

    asked = Measurement(settings.model, folders, settings)
    print_results(measure(asked, settings.out), _console())
    Console(soft_wrap=True).print(f"{settings.model}: written to {settings.out}", markup=False, highlight=False)


def _compare(arguments: Sequence[str]) -> None:
    settings = parse(CompareSettings, _named(arguments, ["first", "second"]), "palenka eval compare")
    from palenka.eval.compare import compare, print_comparison, write_comparison

    comparison = compare(settings.first, settings.second)
    print_comparison(comparison, _console())
    if settings.out is not None:
        write_comparison(settings.out, comparison)


def _export(arguments: Sequence[str]) -> None:
    given = list(arguments)
    first_option = next((place for place, word in enumerate(given) if word.startswith("-")), len(given))
    if first_option:
        given[:first_option] = ["--files", f"[{', '.join(_quoted(word) for word in given[:first_option])}]"]
    settings = parse(ExportSettings, given, "palenka eval export")
    from palenka.eval.tables import export, write_table

    table = export(settings.files, settings.format, settings.published)
    if settings.out is None:
        sys.stdout.write(table)
    else:
        write_table(settings.out, table)


def _console() -> Console:
    """The terminal; a file or a pipe has room for tables of any width."""
    return Console() if sys.stdout.isatty() else Console(width=160)


def _named(arguments: Sequence[str], names: Sequence[str]) -> list[str]:
    """Arguments whose first words, before any option, are given the names of options."""
    given = list(arguments)
    named: list[str] = []
    for name in names:
        if not given or given[0].startswith("-"):
            break
        named += [f"--{name}", given.pop(0)]
    return named + given


def _as_lists(arguments: Sequence[str], option: str) -> list[str]:
    """Arguments with an option's words in one list: from ``--suite a b``, ``a,b``, ``[a,b]``, or repeated options."""
    others: list[str] = []
    words: list[str] = []
    is_word = was_given = False
    for argument in arguments:
        if argument == f"--{option}" or argument.startswith(f"--{option}="):
            is_word = was_given = True
            argument = argument.removeprefix(f"--{option}").removeprefix("=")
        elif argument.startswith("-"):
            is_word = False
        (words if is_word else others).append(argument)
    if not was_given:
        return others
    named = [word for argument in words for word in argument.strip("[]").replace(",", " ").split()]
    return [*others, f"--{option}", f"[{', '.join(named)}]"]


def _quoted(word: str) -> str:
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


if __name__ == "__main__":
    sys.exit(main())
