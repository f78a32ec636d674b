"""`accelerate launch -m palenka.train_student FILE.yaml`, or `palenka train` on one device.

With `--dry_run` it estimates the cost of the run.
"""

import json
import sys
from collections.abc import Sequence

from palenka.ground.command_line import parse, run
from palenka.ground.console import console
from palenka.train_student.settings import TrainCommand


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line of stage two; returns the exit status."""
    return run(_train, arguments)


def _train(arguments: Sequence[str]) -> None:
    given = parse(TrainCommand, arguments, "palenka train")
    if not given.dry_run:
        from palenka.train_student.train import train

        train(given.of_run())
        return
    from palenka.ground.processes import open_processes
    from palenka.train_student.plan import plan, table

    found = plan(given.of_run())
    if not open_processes().is_main_process:
        return
    if given.as_json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
    else:
        console().print(table(found))


if __name__ == "__main__":
    sys.exit(main())
