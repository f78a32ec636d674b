"""`accelerate launch -m palenka.train_student FILE.yaml`, or `palenka train` on one device."""

import sys
from collections.abc import Sequence

from palenka.ground.command_line import parse, run
from palenka.train_student.settings import TrainSettings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line of stage two; returns the exit status."""
    return run(_train, arguments)


def _train(arguments: Sequence[str]) -> None:
    settings = parse(TrainSettings, arguments, "palenka train")
    from palenka.train_student.train import train

    train(settings)


if __name__ == "__main__":
    sys.exit(main())
