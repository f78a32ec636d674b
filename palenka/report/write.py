"""Writing a report to a file: whole or not at all, and never over something else."""

from collections.abc import Sequence
from pathlib import Path

from palenka.ground.errors import UserError
from palenka.ground.files import write_whole

_FIRST_BYTES = 1024


def write_report(directories: Sequence[Path], out: Path) -> None:
    """Write a report on everything that is found in some folders; the same files give the same bytes.

    Raises:
        UserError: if a folder does not exist or holds nothing to report on, a file cannot be read, or `out` is
            something else than a report or cannot be written.
    """
    # Only now: whoever imports this should not wait for matplotlib.
    from palenka.report.page import GENERATOR, render, title_of
    from palenka.report.sources import find_sources

    if out.is_dir() or (out.exists() and GENERATOR.encode() not in out.read_bytes()[:_FIRST_BYTES]):
        raise UserError(f"{out} exists and is no report; choose another out")
    page = render(find_sources(directories), title_of(directories))
    try:
        write_whole(out, page)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}; make room or choose another out") from error
