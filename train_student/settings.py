"""What a training run is told: the same settings for baselines, teachers and students."""

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from palenka.data.windows import WindowRule
from palenka.ground.processes import Device
from palenka.ground.settings import Precision, Settings
from palenka.train_student.model.shapes import ModelShape
from palenka.train_student.objective.objective import TEACHER_TERMS, ObjectiveSettings
from palenka.train_student.optimizer import OptimizerSettings
from palenka.train_student.teachers import TeacherSource


class ValidationSettings(Settings):
    """Cross-entropy on windows that stay the same for all runs on a corpus."""

    split: str = "dev"
    """Split of the corpus."""
    windows: int = Field(default=512, ge=1)
    """How many windows, a fixed sample of the split."""
    every: int | None = Field(default=None, ge=1)
    """Validate after so many steps; at the end of every epoch unless given, and always at the end."""


class TrainSettings(Settings):
    """Train a model: a baseline or a teacher without teachers, a student with them."""

    corpus: Path
    """Directory of the prepared corpus."""
    output: Path
    """Directory of the run."""
    model: ModelShape
    """Shape of the model."""
    split: str = "train"
    """Split of the corpus to train on."""
    windows: WindowRule = WindowRule()
    """How the token stream is cut into windows."""
    fraction: float = Field(default=1.0, gt=0, le=1)
    """Train on only this part of each view's windows, a uniform sample."""
    teachers: dict[str, TeacherSource] = Field(default={})
    """Teachers by name."""
    objective: ObjectiveSettings = ObjectiveSettings()
    """What is minimised."""
    epochs: int = Field(default=1, ge=1)
    """How often the corpus is read."""
    global_batch: int = Field(default=32, ge=1)
    """Windows in an optimizer step, over all processes."""
    micro_batch: int = Field(default=32, ge=1)
    """Windows in a forward pass of one process, at most."""
    optimizer: OptimizerSettings = OptimizerSettings()
    """How the weights move."""
    precision: Precision = "float32"
    """Type that the model computes in; weights, losses and optimizer are float32 in any case."""
    device: Device = "auto"
    """Where the model computes: auto is a GPU (cuda, or mps on a Mac) if there is one."""
    validation: ValidationSettings = ValidationSettings()
    """How the run is validated; the best model is the one that is kept."""
    log_every: int = Field(default=10, ge=1)
    """Steps between two lines of the log."""
    gradient_ratios_every: int = Field(default=250, ge=1)
    """Steps between two measurements of every term's gradient, from the first step on; each costs a step per term."""
    checkpoint_every: int = Field(default=500, ge=1)
    """Steps between two checkpoints, from which an interrupted run goes on; the last two are kept."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where to log beside metrics.jsonl."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Decides the initial weights, the reading order and dropout."""

    @model_validator(mode="after")
    def _terms_and_teachers_agree(self) -> Self:
        for term in filter(self.objective.counts, TEACHER_TERMS):
            if not self.teachers:
                weight = self.objective.weight(term)
                raise ValueError(f"objective.{term} is {weight}, but there are no teachers; name one under teachers")
        if not self.weights():
            raise ValueError("no term has a weight; set objective.hard above 0, or a teacher's term and its weight")
        for name in self.teachers:
            if not re.fullmatch(r"[^./]+", name):
                raise ValueError(f"a teacher has the name '{name}', but it names terms and weights; leave out . and /")
        return self

    def weights(self, step: int | None = None, num_steps: int = 1) -> dict[str, float]:
        """The weight of every term that counts, by its name in the log; at the end unless a step is given."""
        shares = {name: teacher.weight for name, teacher in self.teachers.items()}
        return self.objective.weights(shares, step, num_steps)
