"""Settings of stage one: the teachers, the encodings, and how a capture is run, planned and verified.

Nothing here imports torch.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from palenka.data.signals.encodings import AnyLogitEncoding, LowRankEncoding
from palenka.data.signals.hidden import AnyHiddenEncoding
from palenka.data.windows import WindowRule
from palenka.ground.processes import Compile, Device
from palenka.ground.settings import Command, Precision, Printing, Settings

SINGLE = "teacher"
"""The name, among the models of a signal, of a teacher that is a single model."""


class TeacherSettings(Settings):
    """A teacher, one model or an ensemble, and the parts of its outputs that are kept."""

    teacher: Path | None = None
    """Directory of the teacher, in Hugging Face format, or its id on the Hub, such as HuggingFaceTB/SmolLM2-135M."""
    ensemble: dict[str, Path] = Field(default={})
    """Several teachers by name, instead of one: their geometric mean, captured in one pass."""
    logits: AnyLogitEncoding = LowRankEncoding()
    """What is kept of the teacher's distribution at every token."""
    hidden: AnyHiddenEncoding | None = None
    """What is kept of the teacher's hidden states; default: nothing."""
    precision: Precision = "float32"
    """Type that the teacher computes in."""
    compile: Compile = "auto"
    """Whether the teacher's blocks are compiled: a minute at first, faster then; auto is so on a GPU (cuda)."""

    @model_validator(mode="after")
    def _teacher_is_given(self) -> Self:
        self.models()
        return self

    def models(self) -> dict[str, Path]:
        """The directories of the models by name."""
        return named_models("teacher", self.teacher, self.ensemble)


class CaptureSettings(TeacherSettings, Command):
    """Capture a teacher: run it once over a corpus and keep its outputs in a cache."""

    corpus: Path
    """Directory of the prepared corpus."""
    output: Path
    """Directory of the cache."""
    split: str = "train"
    """Split of the corpus to capture."""
    windows: WindowRule = WindowRule()
    """How the token stream is cut into windows."""
    fraction: float = Field(default=1.0, gt=0, le=1)
    """Capture only this part of each view's windows, a uniform sample, in whole shards; the rest can follow later."""
    device: Device = "auto"
    """Where the teacher computes: auto is a GPU (cuda, or mps on a Mac) if there is one."""
    micro_batch: int = Field(default=32, ge=1, le=2**20)
    """Maximum windows per forward pass and process; fewer if their logits would take more than 1 GB."""
    part: int = Field(default=0, ge=0)
    """Which of the parts to capture, counted from 0; each can be a separate job, on any machine that sees the
    output."""
    parts: int = Field(default=1, ge=1, le=2**16)
    """Number of parts that share the shards; if one fails, a later call fills its gaps."""

    @model_validator(mode="before")
    @classmethod
    def _corpus_is_given(cls, given: Any) -> Any:  # noqa: ANN401 - whatever was given
        # A user with only a model may not know that a corpus comes first.
        if isinstance(given, Mapping) and isinstance(given.get("teacher"), str | Path) and not given.get("corpus"):
            raise ValueError(
                "corpus is missing; prepare text with the teacher's tokenizer, `palenka data prepare --sources TEXT "
                f"--tokenizer {given['teacher']} --output CORPUS`, and give --corpus CORPUS"
            )
        return given

    @model_validator(mode="after")
    def _part_is_one_of_the_parts(self) -> Self:
        if self.part >= self.parts:
            raise ValueError(f"part is {self.part}, but there are {self.parts} part(s), counted from 0")
        return self


class PlanSettings(CaptureSettings, Printing):
    """Estimate the cost of a capture; takes the configuration of the capture."""

    epochs: int = Field(default=6, ge=1, le=10_000)
    """Epochs of a student, for the number of students after which the cache pays off."""
    sample: int = Field(default=64, ge=1, le=2**20)
    """Maximum windows that are captured to a temporary place and timed; fewer if they have more than 16,384 tokens or
    would take a minute. Their bytes per token are nearly those of the whole."""


class VerifySettings(CaptureSettings, Printing):
    """Compare a cache with its teacher; takes the configuration of the capture."""

    sample: int = Field(default=32, ge=1, le=2**20)
    """Random windows that are computed again."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the choice of windows."""
    all: bool = False
    """Also compare every checksum of every shard, at about 1 s per gigabyte."""


class InspectSettings(Printing):
    """Show the contents of a cache."""

    positional: ClassVar[tuple[str, ...]] = ("cache",)

    cache: Path
    """Directory of the cache."""
    sample: int = Field(default=256, ge=1, le=2**20)
    """Windows whose entropy is measured."""


def named_models(option: str, model: Path | None, ensemble: Mapping[str, Path]) -> dict[str, Path]:
    """The models of a teacher by name, from one of two options: `option` or ``ensemble``.

    Raises:
        ValueError: unless exactly one is given; or if an ensemble has one model, or a name that cannot be in a path.
    """
    if (model is None) != bool(ensemble):
        raise ValueError(f"give {option}, a model's directory, or ensemble, several by name, not both or neither")
    if model is not None:
        return {SINGLE: model}
    if len(ensemble) == 1:
        raise ValueError(f"ensemble has only {next(iter(ensemble))}; give {option} instead, or more models")
    for name in ensemble:
        if not re.fullmatch(r"[\w-]+", name):
            raise ValueError(f"ensemble has the name '{name}'; use letters, digits, _ and - alone")
    return dict(ensemble)
