"""`palenka COMMAND`: lists the commands of all rooms and forwards to them; `python -m palenka` is the same."""

import importlib
import sys
from collections.abc import Sequence

from palenka import __version__
from palenka.ground.command_line import run, subcommand

_PROGRAMS = {
    "data": (
        "palenka.data.__main__",
        "prepare a corpus: clean text, learn a tokenizer, store tokens; fetch text",
    ),
    "cache": ("palenka.cache_teachers.__main__", "capture a teacher's signal into a cache"),
    "train": ("palenka.train_student.__main__", "train a baseline, a teacher or a student"),
    "parameters": ("palenka.parameters", "how many parameters the models of some configurations have"),
    "export": ("palenka.export", "write a finished run's model alone, to publish it"),
    "eval": ("palenka.eval.__main__", "measure a model"),
    "generate": ("palenka.generate", "let a model go on with the beginning of a text"),
    "report": ("palenka.report.__main__", "write a page about runs, caches and results"),
    "status": ("palenka.status", "list runs, caches and grids, and how far each is"),
    "configs": ("palenka.config_files", "list the YAML files that come with Palenka, copy some to change and run"),
    "study": ("palenka.study", "run all stages of a study, from raw text to a report"),
    "grid": ("palenka.grid.__main__", "train many students over shared caches, rank them, train the best again"),
    "demo": ("palenka.demo", "the study that comes with Palenka: offline, real text, some five minutes on two cores"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run(_forward, arguments)


def _forward(arguments: Sequence[str]) -> int:
    if arguments[:1] == ["--version"]:
        sys.stdout.write(f"palenka {__version__}\n")
        return 0
    name, rest = subcommand("palenka", {name: text for name, (_, text) in _PROGRAMS.items()}, arguments)
    module, _ = _PROGRAMS[name]
    # Imported only now, so that `palenka --help` does not wait for torch.
    program = importlib.import_module(module)
    status: int = program.main(rest)
    return status


if __name__ == "__main__":
    sys.exit(main())
