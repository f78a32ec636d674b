"""Settings of a training run: the same for baselines, teachers and students. Nothing here imports torch."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from palenka.cache_teachers.settings import TeacherSettings, named_models
from palenka.data.signals.encodings import TopKEncoding
from palenka.data.signals.hidden import ComponentsEncoding
from palenka.data.windows import WindowRule
from palenka.ground.processes import Compile, Device
from palenka.ground.registry import OneOf
from palenka.ground.settings import Command, Duration, Precision, Printing, Settings
from palenka.train_student.model import configured, shapes, trained  # noqa: F401 - they register themselves
from palenka.train_student.model.student import STUDENT_MODELS, StudentModel
from palenka.train_student.objective.settings import ObjectiveSettings

AnyStudentModel = Annotated[StudentModel, OneOf(STUDENT_MODELS, "architecture", key=None)]
"""A settings field for any registered way to begin a student, chosen by the option that only it has."""


class LiveHidden(ComponentsEncoding):
    """What is used of a live teacher's hidden states: all components, exact by default, since nothing is stored."""

    components: None = None
    """Not for live teachers: each process would measure a different basis."""
    values: Literal["int8", "float32"] = "float32"
    """Type of the values; int8 rounds them as a cache does."""


class TeacherSource(Settings):
    """One teacher of a student: a cache, or a live model or ensemble."""

    source: Literal["cache", "live"] = "cache"
    """Whether its signal is read from a cache or computed while the student trains."""
    weight: float = Field(default=1.0, ge=0)
    """Its weight in the teacher terms; weights need not sum to 1."""
    cache: Path | None = None
    """Directory of its cache."""
    model: Path | None = None
    """A live model, a directory or a Hub id; with a cache, the model that it must have been captured from."""
    ensemble: dict[str, Path] = Field(default={})
    """Several live models by name, instead of one: their geometric mean."""
    layers: Literal["uniform"] | dict[int, int] = "uniform"
    """The student layer that predicts each teacher layer; indices of hidden states, 0 is the embeddings."""
    k: int | None = Field(default=None, ge=1)
    """Tokens kept one by one of a live teacher's distribution, or of a cache's; default: all."""
    rank: int | None = Field(default=None, ge=1)
    """Numbers per token that are used of a cache's low_rank logits; default: all."""
    hidden: LiveHidden = LiveHidden()
    """What is used of a live teacher's hidden states."""
    precision: Precision = "float32"
    """Type that a live teacher computes in."""

    @model_validator(mode="after")
    def _source_is_given(self) -> Self:
        if self.source == "live":
            if self.cache is not None:
                raise ValueError(f"a teacher with source live needs no cache, but cache is {self.cache}; leave it out")
            if self.rank is not None:
                raise ValueError(f"a live teacher's logits have no rank, but rank is {self.rank}; leave it out")
            self.models()
        elif self.cache is None:
            raise ValueError("a teacher needs a cache, or source: live and a model; give one of them")
        elif (self.ensemble, self.hidden, self.precision) != ({}, LiveHidden(), "float32"):
            raise ValueError(
                "ensemble, hidden and precision are options of live teachers; a cache says itself what it holds"
            )
        if self.layers == {}:
            raise ValueError("layers maps no layer; name some, such as {0: 0, 12: 8}, or choose uniform")
        return self

    def models(self) -> dict[str, Path]:
        """The directories of a live teacher's models by name."""
        return named_models("model", self.model, self.ensemble)

    def live(self, vocabulary_size: int, temperature: float, with_states: bool) -> TeacherSettings:
        """Settings of the live teacher, with its full distribution unless k is given."""
        hidden = self.hidden if with_states else None
        if hidden and not isinstance(self.layers, str):
            hidden = hidden.model_copy(update={"layers": tuple(self.layers)})
        return TeacherSettings(
            teacher=self.model,
            ensemble=self.ensemble,
            logits=TopKEncoding(k=self.k or vocabulary_size, temperatures=(temperature,), values="float32"),
            hidden=hidden,
            precision=self.precision,
        )


class OptimizerSettings(Settings):
    """AdamW with a linear warm-up and a schedule of the learning rate."""

    learning_rate: float = Field(default=5e-4, gt=0)
    """Peak learning rate."""
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"
    """After the warm-up: half a cosine down to 0; or constant; or wsd: constant, and a linear decay to 0 at the end.
    Runs with the last two can get more epochs."""
    decay_fraction: float = Field(default=0.1, gt=0, le=1)
    """Fraction of the run, at its end, over which the rate of wsd decays."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decay of matrices; vectors (norms, biases) have none."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the gradient's mean."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the gradient's second moment."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps of linear warm-up; default: a tenth of the run (of its first epoch, if it can get more epochs), at most
    300."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Maximum norm of the student's gradient, and separately of that of projections and heads."""

    def warmup_of(self, num_steps: int) -> int:
        """Steps of warm-up in a run of `num_steps` steps."""
        return min(300, num_steps // 10) if self.warmup_steps is None else self.warmup_steps


class ValidationSettings(Settings):
    """Cross-entropy on windows that are the same for all runs on a corpus."""

    split: str = "dev"
    """Split of the corpus."""
    windows: int = Field(default=512, ge=1)
    """How many windows, a fixed sample of the split."""
    every: int | None = Field(default=None, ge=1)
    """Steps between validations; default: once per epoch. The end of the run is always validated."""


class TrainSettings(Command):
    """Train a model: a baseline or a teacher without teachers, a student with them."""

    corpus: Path
    """Directory of the prepared corpus."""
    output: Path
    """Directory of the run."""
    model: AnyStudentModel
    """The model: a shape, with architecture; any of transformers, with model_type; or trained weights, with from."""
    split: str = "train"
    """Split of the corpus to train on."""
    windows: WindowRule = WindowRule()
    """How the token stream is cut into windows."""
    fraction: float = Field(default=1.0, gt=0, le=1)
    """Train on only this part of each view's windows, a uniform sample."""
    teachers: dict[str, TeacherSource] = Field(default={})
    """Teachers by name."""
    objective: ObjectiveSettings = Field(default_factory=ObjectiveSettings)
    """The terms that are minimised."""
    epochs: int = Field(default=1, ge=1, le=10_000)
    """How often the corpus is read."""
    global_batch: int = Field(default=32, ge=1, le=2**20)
    """Windows in an optimizer step, over all processes."""
    micro_batch: int = Field(default=32, ge=1, le=2**20)
    """Maximum windows per forward pass and process."""
    optimizer: OptimizerSettings = OptimizerSettings()
    """The optimizer."""
    precision: Precision = "float32"
    """Type that the model computes in; weights, losses and optimizer are float32 in any case."""
    device: Device = "auto"
    """Where the model computes: auto is a GPU (cuda, or mps on a Mac) if there is one."""
    compile: Compile = "auto"
    """Whether the blocks of student and live teachers are compiled: a minute at first, faster then; auto is so on a GPU
    (cuda). Results are the same except for rounding."""
    cuda_graphs: bool = False
    """Whether a micro-batch is launched as one CUDA graph, recorded at the run's first steps: where the host launches
    kernels more slowly than a GPU computes them. For one GPU, in float32 or bf16; not yet run on one."""
    validation: ValidationSettings = ValidationSettings()
    """How the run is validated; the best model is kept."""
    log_every: int = Field(default=10, ge=1)
    """Steps between two lines of the log."""
    gradient_ratios_every: int = Field(default=250, ge=1)
    """Steps between two measurements of every term's gradient, from the first step on; each costs a step per term."""
    checkpoint_every: Annotated[int, Field(ge=1)] | Duration = "10m"
    """Steps between two checkpoints, or a time: 90s, 10m, 2h. A run resumes at the last one; two are kept."""
    revisions: Literal["babylm"] | tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Numbers of words after which the model is also kept, in revisions/ of the run; babylm for those of its tracks
    (after each million up to 10, then every 10 million, above 100 every 100). Each is as large as the model, and none
    is ever removed."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where to log beside metrics.jsonl."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Decides the initial weights, the reading order and dropout."""

    @model_validator(mode="after")
    def _revisions_ascend(self) -> Self:
        if self.revisions != "babylm" and any(later <= word for word, later in pairwise(self.revisions)):
            raise ValueError(f"revisions is {list(self.revisions)}, but should be numbers of words in ascending order")
        return self

    @model_validator(mode="after")
    def _terms_and_teachers_agree(self) -> Self:
        for name, term in self.objective.active.items():
            if term.has_teachers and not self.teachers:
                raise ValueError(f"objective.{name} is {term.weight}, but there are no teachers; name one in teachers")
        if not self.weights():
            raise ValueError("no term has a weight; set objective.hard above 0, or a teacher's term and its weight")
        for name in self.teachers:
            if not re.fullmatch(r"[^./]+", name):
                raise ValueError(f"a teacher has the name '{name}', but it names terms and weights; leave out . and /")
        return self

    @property
    def needs_its_micro_batch(self) -> bool:
        """Whether results depend on the micro-batch: dropout has a mask for each, and some terms compare windows."""
        return self.model.may_drop_out or any(term.sees_micro_batch for term in self.objective.active.values())

    def weights(self, step: int | None = None, num_steps: int = 1) -> dict[str, float]:
        """The weight of every active term, by its name in the log; at the end unless a step is given."""
        shares = {name: teacher.weight for name, teacher in self.teachers.items()}
        return self.objective.weights(shares, step, num_steps)


class TrainCommand(TrainSettings, Printing):
    """Train a model: a baseline or a teacher without teachers, a student with them."""

    dry_run: bool = False
    """Estimate the run's memory, disk and hours from a few timed steps, and write nothing."""

    @model_validator(mode="after")
    def _json_is_of_a_dry_run(self) -> Self:
        if self.as_json and not self.dry_run:
            raise ValueError("json prints what a dry run finds; add dry_run, or leave json out")
        return self

    def of_run(self) -> TrainSettings:
        """Only the settings of the run."""
        return TrainSettings(**{name: getattr(self, name) for name in TrainSettings.model_fields})
