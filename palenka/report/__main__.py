"""`palenka report DIR… --out report.html`, or `python -m palenka.report` with the same."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field
from rich.console import Console

from palenka.ground.command_line import parse, run
from palenka.ground.settings import Settings
from palenka.report.write import write_report


class ReportSettings(Settings):
    """Write one self-contained HTML page about runs, grids, teacher caches and evaluation results."""

    directories: list[Path] = Field(min_length=1)
    """Folders to search, with all folders in them; may stand without this name."""
    out: Path
    """HTML file for the report; an earlier report there is replaced."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line of the report; returns the exit status."""
    return run(_report, arguments)


def _report(arguments: Sequence[str]) -> None:
    settings = parse(ReportSettings, _named(arguments), "palenka report")
    write_report(settings.directories, settings.out)
    Console().print(f"Written to {settings.out}", markup=False, highlight=False, soft_wrap=True)


def _named(arguments: Sequence[str]) -> list[str]:
    """The arguments with all that stand without a name gathered into --directories."""
    folders: list[str] = []
    options: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("-"):
            folders.append(argument)
            continue
        options.append(argument)
        if "=" not in argument and argument not in ("-h", "--help"):
            options += [value for value in [next(rest, None)] if value is not None]
    return [*options, f"--directories={json.dumps(folders, ensure_ascii=False)}"] if folders else options


if __name__ == "__main__":
    sys.exit(main())
