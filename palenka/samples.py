"""Samples on disk: a model's continuations of prompts, in a file that the report finds."""

from pathlib import Path

from palenka.ground.errors import UserError
from palenka.ground.files import require_own
from palenka.ground.lock import sole_writer
from palenka.ground.records import load_json, read_sealed, write_sealed
from palenka.ground.settings import Settings, read_as


class Sample(Settings):
    """The beginning of a text, and the same with the model's continuation."""

    prompt: str
    text: str


class Drawing(Settings):
    """The settings of sampling: equal settings give equal samples of a model's prompts."""

    tokens: int
    """Maximum tokens added to each prompt."""
    temperature: float
    top_p: float
    seed: int


class Samples(Settings):
    """A model's continuations of some prompts."""

    name: str
    """Of the model."""
    weights: str
    """Hash of its tensors."""
    drawing: Drawing
    samples: tuple[Sample, ...]


def write_samples(out: Path, samples: Samples) -> None:
    """Write samples, atomically.

    Raises:
        UserError: if anything but samples is there.
    """
    require_samples(out)
    with sole_writer(out, wait=True):
        write_sealed(out, samples.as_plain())


def require_samples(out: Path) -> None:
    """Refuse to overwrite anything but samples.

    Raises:
        UserError: if anything else is there.
    """
    names = {*Samples.model_fields, "checksum"}
    require_own(out, lambda text: set(load_json(text)) == names, "file of samples")


def read_samples(path: Path) -> Samples:
    """The samples in a file.

    Raises:
        UserError: if they were changed.
    """
    return read_as(Samples, read_sealed(path, "make them again with `palenka generate`"), path)


def earlier_samples(out: Path, weights: str, drawing: Drawing, prompts: tuple[str, ...]) -> Samples | None:
    """The samples in a file, if they have the same model, settings and prompts; else None."""
    try:
        found = read_samples(out)
    except (FileNotFoundError, UserError):
        return None
    said = found.weights, found.drawing, tuple(sample.prompt for sample in found.samples)
    return found if said == (weights, drawing, prompts) else None
