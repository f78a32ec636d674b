"""`accelerate launch -m palenka.cache_teachers run FILE.yaml`, or `palenka cache run` on one device.

`palenka cache plan`, `verify` and `inspect` report the cost of a capture, the error of a cache, and its contents.
"""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich.table import Table

from palenka.cache_teachers.settings import CaptureSettings, InspectSettings, PlanSettings, VerifySettings
from palenka.cache_teachers.tables import inspect_tables, plan_tables, verify_tables
from palenka.ground.command_line import parse, run, subcommand
from palenka.ground.console import console
from palenka.ground.settings import Printing

_COMMANDS = {
    "plan": "what a capture would cost: bytes, seconds, and after how many students it pays off",
    "run": "capture a teacher, or go on with a capture",
    "verify": "compare random windows with the teacher; --all compares every checksum",
    "inspect": "what a cache holds: sizes, kept mass, entropy, error of hidden states",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line of stage one; returns the exit status."""
    return run(_cache, arguments)


def _cache(arguments: Sequence[str]) -> None:
    name, rest = subcommand("palenka cache", _COMMANDS, arguments)
    program = f"palenka cache {name}"
    if name == "run":
        captured = parse(CaptureSettings, rest, program)
        from palenka.cache_teachers.capture import capture

        capture(captured)
    elif name == "plan":
        planned = parse(PlanSettings, rest, program)
        from palenka.cache_teachers.plan import plan

        _show(plan_tables, plan(planned), planned)
    elif name == "verify":
        verified = parse(VerifySettings, rest, program)
        from palenka.cache_teachers.verify import refuse_damaged, verify

        found = verify(verified)
        _show(verify_tables, found, verified)
        if damaged := found["damaged"]:
            refuse_damaged(found["cache"], damaged)
    else:
        inspected = parse(InspectSettings, rest, program)
        from palenka.cache_teachers.inspect import inspect

        _show(inspect_tables, inspect(inspected), inspected)


def _show(tables: Callable[[dict[str, Any]], Iterable[Table]], found: dict[str, Any], settings: Printing) -> None:
    """Print findings as JSON, or as tables."""
    if settings.as_json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
        return
    for table in tables(found):
        console().print(table)


if __name__ == "__main__":
    sys.exit(main())
