"""The published shapes on real text, on one GPU in two parts of at most eight minutes each.

    python -m benchmarks.gpu_study --part teachers --text FOLDER --output FOLDER
    python -m benchmarks.gpu_study --part students --blimp FOLDER --output FOLDER

The first part prepares the text, trains the teachers and captures them; the second goes on from there on the same
machine: control, logit term alone and Palenka, measured on held-out text and BLiMP. What the minutes do not allow is
cut: a few steps of a model are timed, then its epochs, and at last its part of the text, are lowered until it fits. The
record, FOLDER/gpu_study.json, says what was published and what was done. `--shrunken` has small shapes for a CPU.
"""

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_models import SMALL, TEACHERS
from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.settings import CaptureSettings
from palenka.data.corpus import Corpus
from palenka.data.text.prepare import CorpusSettings, prepare
from palenka.eval.measure import Measurement, measure
from palenka.eval.suite import Conditions
from palenka.ground.call import this_call
from palenka.ground.settings import read_yaml
from palenka.train_student.run import Run
from palenka.train_student.settings import TrainSettings
from palenka.train_student.train import train

CORPUS = Path("configs/corpora/babylm-10m.yaml")
STUDENTS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "control": ("control-58m", {}),
    "logit": ("palenka-58m-l0.1-h0.3", {"hidden": 0.0}),
    "palenka": ("palenka-58m-l0.1-h0.3", {}),
}
"""The students by name: the published file of each, and in what its objective differs."""
PILOT_STEPS = 20
CAPTURES_PER_STEP = 3.0
"""A capture reads so many tokens while training moves one: no backward pass."""


@dataclass
class Study:
    """What the study reads and writes, and what time is left for the part.

    Attributes:
        output: folder of all that is made.
        device: where models run.
        shrunken: small shapes.
        ends: of this part, on the monotonic clock.
    """

    output: Path
    device: torch.device
    shrunken: bool
    ends: float

    @property
    def file(self) -> Path:
        """The record."""
        return self.output / "gpu_study.json"

    def read(self) -> dict[str, Any]:
        """What was recorded so far."""
        return json.loads(self.file.read_text()) if self.file.exists() else {}

    def record(self, name: str, told: object) -> None:
        """Keep what is known of a model, a cache or the text."""
        self.file.write_text(json.dumps(self.read() | {name: told}, indent=2) + "\n")
        print(f"{name}: {json.dumps(told)}", flush=True)

    @property
    def corpus(self) -> Corpus:
        """The text."""
        return Corpus.open(self.output / "corpus", "train")

    def run_of(self, file: Path, output: Path, changes: Mapping[str, Any]) -> TrainSettings:
        """A published run over this text."""
        plain: dict[str, Any] = read_yaml(file)
        plain |= {"corpus": self.output / "corpus", "output": output, "device": self.device.type}
        # A tenth of the run, 300 steps at most: the published one may be longer than what is left of the run.
        plain["optimizer"] = plain["optimizer"] | {"warmup_steps": None}
        if self.shrunken:
            plain["model"] = plain["model"] | SMALL
            plain |= {"precision": "float32", "global_batch": 8, "micro_batch": 8, "validation": {"windows": 16}}
        for source in plain.get("teachers", {}).values():
            source["cache"], source["model"] = self.output / Path(source["cache"]).name, None
        return TrainSettings.model_validate(plain | dict(changes))


def fitted(study: Study, settings: TrainSettings, seconds: float, most: float = 1.0) -> TrainSettings:
    """The same run with as many epochs, or as much of the text, as take so many seconds; what is cut is recorded.

    Args:
        study: that it is of.
        settings: as published.
        seconds: that it may take.
        most: part of the text that there is for it.
    """
    pilot = study.output / "pilots" / settings.output.name
    few = PILOT_STEPS * settings.global_batch * settings.windows.length / len(study.corpus.tokens)
    changes = {"output": pilot, "epochs": 1, "fraction": min(most, few), "log_every": PILOT_STEPS // 2}
    train(settings.model_copy(update=changes))
    speed = float(Run(pilot).metrics()["tokens_per_second"][1][-1])
    passes = speed * seconds / len(study.corpus.tokens)
    least = settings.global_batch * settings.windows.length / len(study.corpus.tokens)
    fraction = min(most, max(passes, 2 * least))
    epochs = max(1, min(settings.epochs, int(passes / most)))
    return settings.model_copy(update={"epochs": epochs, "fraction": fraction})


def cut_of(published: TrainSettings, done: TrainSettings) -> dict[str, object]:
    """What a run had, beside what was published."""
    return {
        "epochs": done.epochs,
        "published_epochs": published.epochs,
        "fraction": round(done.fraction, 4),
        "is_cut": done.epochs < published.epochs or done.fraction < published.fraction,
    }


def teachers(study: Study, text: Path) -> None:
    """Part one: text, teachers, captures."""
    plain: dict[str, Any] = read_yaml(CORPUS)
    plain |= {"sources": text, "output": study.output / "corpus"}
    prepare(CorpusSettings.model_validate(plain | ({"vocabulary_size": 400} if study.shrunken else {})))
    study.record("call", this_call(study.device).as_plain())
    study.record("text", {"tokens": len(study.corpus.tokens), "vocabulary": study.corpus.vocabulary_size})
    for number, (name, shape) in enumerate(TEACHERS.items()):
        published = study.run_of(Path("configs/teachers") / f"{shape}.yaml", study.output / "teachers" / name, {})
        each = (study.ends - time.monotonic()) / (len(TEACHERS) - number)
        settings = fitted(study, published, each * 0.55)
        result = train(settings)
        speed = result.tokens_per_second * CAPTURES_PER_STEP
        part = max(0.02, min(1.0, speed * each * 0.2 / len(study.corpus.tokens)))
        study.record(f"teacher {name}", cut_of(published, settings) | measured(study, settings.output, {}))
        study.record(f"cache {name}", captured(study, name, shape, part))


def captured(study: Study, name: str, shape: str, part: float) -> dict[str, object]:
    """Capture a teacher over a part of the text."""
    plain: dict[str, Any] = read_yaml(Path("configs/caches") / f"{shape}.yaml")
    plain |= {"teacher": study.output / "teachers" / name, "corpus": study.output / "corpus"}
    plain |= {"output": study.output / shape, "fraction": part, "device": study.device.type}
    if study.shrunken:
        plain |= {"precision": "float32", "hidden": plain["hidden"] | {"sample_windows": 16, "components": 8}}
    started = time.monotonic()
    capture(CaptureSettings.model_validate(plain))
    return {"fraction": part, "seconds": round(time.monotonic() - started, 1), "is_cut": part < 1}


def students(study: Study, suites: Mapping[str, Path]) -> None:
    """Part two: the students, on what both teachers were captured over, all for the same windows."""
    known = study.read()
    most = min(known[f"cache {name}"]["fraction"] for name in TEACHERS)
    runs = {}
    for name, (file, objective) in STUDENTS.items():
        published = study.run_of(Path("configs/students") / f"{file}.yaml", study.output / "students" / name, {})
        if objective:
            plain: dict[str, Any] = published.as_plain()
            published = TrainSettings.model_validate(plain | {"objective": plain["objective"] | objective})
        runs[name] = published
    # All as much as the slowest can: controls on more text would be no controls.
    each = (study.ends - time.monotonic()) / len(STUDENTS) * 0.7
    slowest = fitted(study, runs["palenka"], each, most)
    for name, published in runs.items():
        settings = published.model_copy(update={"epochs": slowest.epochs, "fraction": slowest.fraction})
        train(settings)
        study.record(f"student {name}", cut_of(published, settings) | measured(study, settings.output, suites))


def measured(study: Study, model: Path, suites: Mapping[str, Path]) -> dict[str, str]:
    """The main figure of each suite, with its interval."""
    folders = {"held_out": study.output / "corpus", **suites}
    out = study.output / "measures" / f"{model.name}.json"
    out.parent.mkdir(exist_ok=True)
    results = measure(Measurement(model, folders, Conditions(windows=64 if study.shrunken else 1024)), out)
    return {result.suite: str(result.main) for result in results.suites}


def main() -> None:
    """Run a part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("teachers", "students"), required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--text", type=Path, help="folder of the text, in BabyLM's files; the first part needs it")
    parser.add_argument("--blimp", type=Path, help="folder of BLiMP's data, for the second part")
    parser.add_argument("--suite", default="blimp", help="the suite that --blimp is the folder of")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=7.5, help="of the part, with what ends it")
    parser.add_argument("--shrunken", action="store_true", help="small shapes, to try the script")
    given = parser.parse_args()
    study = Study(given.output, torch.device(given.device), given.shrunken, time.monotonic() + 60 * given.minutes)
    study.output.mkdir(parents=True, exist_ok=True)
    if given.part == "teachers":
        if given.text is None:
            parser.error("--part teachers needs --text, a folder of text")
        teachers(study, given.text)
    elif not all(f"cache {name}" in study.read() for name in TEACHERS):
        parser.error(f"{study.file} knows of no captures; run --part teachers first, with the same --output")
    else:
        students(study, {given.suite: given.blimp} if given.blimp else {})


if __name__ == "__main__":
    main()
