"""`palenka report DIR… --out report.html`, or `python -m palenka.report` with the same."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from palenka.ground.command_line import parse, run
from palenka.ground.console import console
from palenka.ground.settings import Command
from palenka.report.write import write_report


class ReportSettings(Command):
    """Write one self-contained HTML page about runs, grids, teacher caches and evaluation results."""

    positional: ClassVar[tuple[str, ...]] = ("directories",)

    directories: list[Path] = Field(min_length=1)
    """Folders to search, with all folders in them."""
    out: Path
    """HTML file for the report; replaces an earlier report."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line of the report; returns the exit status."""
    return run(_report, arguments)


def _report(arguments: Sequence[str]) -> None:
    settings = parse(ReportSettings, arguments, "palenka report")
    write_report(settings.directories, settings.out)
    console(soft_wrap=True).print(f"Written to {settings.out}")


if __name__ == "__main__":
    sys.exit(main())
