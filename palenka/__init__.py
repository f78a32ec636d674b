"""Palenka: distil small language models from cached teachers. The command line, and the names for use from Python.

    import palenka

    corpus = palenka.Corpus.open("runs/demo/corpus")
    cache = palenka.TeacherCache.open("runs/demo/cache-llama")
    print(palenka.look(cache, corpus))

docs/python.md has more. The names below are imported at first use, so ``import palenka`` is fast.
"""

import importlib
import os
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Read when torch is imported. Its threads would otherwise spin while they wait for each other, and two processes on the
# same cores would slow each other down many times over; libgomp's spin for some microseconds first, without which one
# process alone would be a tenth slower (benchmarks/records/threads.md). A user's own setting has precedence.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

if TYPE_CHECKING:
    from palenka.cache_teachers.capture import capture
    from palenka.cache_teachers.settings import CaptureSettings
    from palenka.data.corpus import Corpus
    from palenka.data.signals.batches import Batches
    from palenka.data.signals.cache import TeacherCache
    from palenka.data.signals.look import look
    from palenka.data.windows import WindowRule
    from palenka.eval.measure import evaluate
    from palenka.ground.command_line import read_settings
    from palenka.ground.errors import UserError
    from palenka.train_student.objective.objective import Objective
    from palenka.train_student.objective.settings import ObjectiveSettings
    from palenka.train_student.run import Run
    from palenka.train_student.settings import TrainSettings
    from palenka.train_student.teachers import open_teachers
    from palenka.train_student.train import train

__all__ = [
    "Batches",
    "CaptureSettings",
    "Corpus",
    "Objective",
    "ObjectiveSettings",
    "Run",
    "TeacherCache",
    "TrainSettings",
    "UserError",
    "WindowRule",
    "capture",
    "evaluate",
    "look",
    "open_teachers",
    "read_settings",
    "train",
]

_MODULES = {
    "Batches": "data.signals.batches",
    "CaptureSettings": "cache_teachers.settings",
    "Corpus": "data.corpus",
    "Objective": "train_student.objective.objective",
    "ObjectiveSettings": "train_student.objective.settings",
    "Run": "train_student.run",
    "TeacherCache": "data.signals.cache",
    "TrainSettings": "train_student.settings",
    "UserError": "ground.errors",
    "WindowRule": "data.windows",
    "capture": "cache_teachers.capture",
    "evaluate": "eval.measure",
    "look": "data.signals.look",
    "open_teachers": "train_student.teachers",
    "read_settings": "ground.command_line",
    "train": "train_student.train",
}


if not TYPE_CHECKING:  # a type checker would believe that every name exists

    def __getattr__(name: str) -> object:
        """A name of `__all__`, from its module."""
        if name not in _MODULES:
            raise AttributeError(f"module 'palenka' has no attribute {name!r}; it has {', '.join(__all__)}")
        found = getattr(importlib.import_module(f"palenka.{_MODULES[name]}"), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
