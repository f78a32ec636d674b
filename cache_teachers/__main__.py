"""`accelerate launch -m cache_teachers run --config configs/caches/NAME.yaml`, or `palenka cache run` on one device."""

import sys
from collections.abc import Sequence

from configs.command_line import parse, run, subcommand


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line of stage one; returns the exit status."""
    return run(_cache, arguments)


def _cache(arguments: Sequence[str]) -> None:
    _, rest = subcommand("palenka cache", {"run": "capture a teacher, or go on with a capture"}, arguments)
    from cache_teachers.capture import CaptureSettings, capture

    capture(parse(CaptureSettings, rest, "palenka cache run"))


if __name__ == "__main__":
    sys.exit(main())
