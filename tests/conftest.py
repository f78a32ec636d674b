"""A small real corpus and small real teachers, made once for all tests."""

import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import settings
from palenka.train_student.objective.terms import NextTokenTerms
from torch import Tensor, nn

from palenka.cache_teachers.capture import CaptureSettings, capture
from palenka.data.corpus import Corpus
from palenka.data.signals.signal import TeacherSignal
from palenka.data.text.prepare import CorpusSettings, prepare
from palenka.train_student.model.head import head_terms
from palenka.train_student.model.shapes import ModelShape
from palenka.train_student.objective.divergences import Divergence

# A busy machine is no failure.
settings.register_profile("palenka", deadline=None)
settings.load_profile("palenka")

LENGTH = 16
VOCABULARY = 320


def _sentences(seed: int, count: int) -> str:
    """Sentences of a small grammar: enough structure for a model to learn something of in a few steps."""
    draw = random.Random(seed)
    nouns = ["teacher", "student", "window", "token", "river", "stone", "lantern", "garden"]
    verbs = ["sees", "follows", "keeps", "reads", "crosses", "paints"]
    lines = []
    for number in range(count):
        lines.append(f"the {draw.choice(nouns)} {draw.choice(verbs)} the {draw.choice(nouns)} .")
        if number % 20 == 19:
            lines.append("")
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Models of this size only wait for each other's threads."""
    torch.set_num_threads(1)


LossesOfLogits = Callable[..., tuple[Tensor, dict[str, Tensor]]]


@pytest.fixture(scope="session")
def losses_of_logits() -> LossesOfLogits:
    """The weighted sum of the terms on given logits [B, L, V], and the terms by name: through a head that is 1."""

    def losses(
        logits: Tensor,
        signals: Mapping[str, TeacherSignal],
        weights: Mapping[str, float],
        temperature: float,
        divergence: Divergence = "forward",
        tokens: Tensor | None = None,
        hard: float = 0.0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        head = nn.Linear(logits.shape[-1], logits.shape[-1], bias=False, dtype=logits.dtype)
        head.weight = nn.Parameter(torch.eye(logits.shape[-1], dtype=logits.dtype), requires_grad=False)
        terms = NextTokenTerms(tokens, hard, signals, weights, divergence, temperature)
        total, values = head_terms(logits, head, terms)
        return total, dict(zip(("hard", *signals), values.unbind(), strict=True))

    return losses


@pytest.fixture(scope="session")
def corpus_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared corpus with a train and a dev split."""
    folder = tmp_path_factory.mktemp("corpus")
    sources = folder / "text"
    sources.mkdir()
    (sources / "switchboard.train").write_text(_sentences(0, 2000), encoding="utf-8")
    (sources / "switchboard.dev").write_text(_sentences(1, 300), encoding="utf-8")
    prepare(CorpusSettings(sources=sources, output=folder / "corpus", vocabulary_size=VOCABULARY))
    return folder / "corpus"


@pytest.fixture(scope="session")
def corpus(corpus_directory: Path) -> Corpus:
    """Its train split, open."""
    return Corpus.open(corpus_directory, "train")


def shape(architecture: str = "llama", **changes: object) -> ModelShape:
    """A shape that trains in milliseconds."""
    fields: dict[str, object] = {
        "architecture": architecture,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
    }
    return ModelShape.model_validate(fields | changes)


@pytest.fixture(scope="session")
def make_shape() -> Callable[..., ModelShape]:
    """`shape` for tests: they cannot import from here."""
    return shape


@pytest.fixture(scope="session")
def make_teacher(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes model directories with random weights, sharp enough to have opinions."""

    def make(architecture: str = "llama", seed: int = 0, **changes: object) -> Path:
        directory = tmp_path_factory.mktemp(f"teacher-{architecture}")
        model = shape(architecture, **changes).build(corpus.tokenizer(), seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(3.0)
        model.save_pretrained(directory)
        for path in (corpus.directory / "tokenizer").iterdir():
            shutil.copyfile(path, directory / path.name)
        return directory

    return make


@pytest.fixture(scope="session")
def teacher(make_teacher: Callable[..., Path]) -> Path:
    """A Llama teacher."""
    return make_teacher("llama", seed=1)


@pytest.fixture
def capture_settings(teacher: Path, corpus_directory: Path, tmp_path: Path) -> CaptureSettings:
    """Settings of a small capture into a directory of the test's own."""
    return CaptureSettings.model_validate(
        {
            "teacher": teacher,
            "corpus": corpus_directory,
            "output": tmp_path / "cache",
            "windows": {"length": LENGTH},
            "logits": {"k": 8},
        }
    )


@pytest.fixture
def cache_directory(capture_settings: CaptureSettings) -> Path:
    """A captured cache of the test's own: it may be damaged."""
    capture(capture_settings)
    return capture_settings.output


@pytest.fixture
def grid_file(capture_settings: CaptureSettings, tmp_path: Path) -> Path:
    """A grid of a control and two points, with a finalist."""
    capture(capture_settings)
    student = {
        "corpus": str(capture_settings.corpus),
        "output": "decided by the grid",
        "model": {"architecture": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2},
        "windows": {"length": 16},
        "fraction": 0.1,
        "teachers": {"t": {"cache": str(capture_settings.output)}},
        "objective": {"hard": 0.5, "logit": 0.5},
        "global_batch": 16,
        "validation": {"windows": 8},
    }
    grid = {
        "output": str(tmp_path / "grid"),
        "student": "student.yaml",
        "product": {"objective.logit": [0.1, 0.9]},
        "held_out_windows": 40,
        "finalists": {"count": 1, "overrides": {"fraction": 0.2}},
        "slurm": {"cpus": 1, "time": "00:10:00"},
    }
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(student))
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    return tmp_path / "grid.yaml"
