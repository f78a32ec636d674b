"""A small real corpus and small real teachers, made once for all tests."""

import contextlib
import io
import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import settings as hypothesis_settings
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from palenka.__main__ import main
from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.settings import CaptureSettings
from palenka.data.corpus import Corpus
from palenka.data.signals.distribution import Distribution, Others
from palenka.data.signals.encoding import ENCODINGS, TeacherOutputs
from palenka.data.signals.encodings import TopKEncoding
from palenka.data.signals.signal import TeacherSignal
from palenka.data.text.prepare import CorpusSettings, prepare
from palenka.data.text.readers import READERS
from palenka.eval.suites import SUITES
from palenka.ground.command_line import USER_MISTAKE
from palenka.ground.registry import Registry, import_plugins
from palenka.ground.settings import Settings
from palenka.train_student.model.head import head_terms
from palenka.train_student.model.shapes import ModelShape
from palenka.train_student.objective.divergences import DIVERGENCES
from palenka.train_student.objective.next_token import NextTokenTerms
from palenka.train_student.objective.term import TERMS
from palenka.train_student.settings import TrainSettings

# A busy machine is no failure.
hypothesis_settings.register_profile("palenka", deadline=None)
hypothesis_settings.load_profile("palenka")

LENGTH = 16
VOCABULARY = 320
REGISTRIES: tuple[Registry[Any], ...] = (DIVERGENCES, ENCODINGS, READERS, SUITES, TERMS)


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


@pytest.fixture(scope="session", autouse=True)
def no_terminal() -> None:
    """Tables are as wide as in a pipe: workers of pytest inherit a COLUMNS that readline sets in their parent."""
    os.environ.pop("COLUMNS", None)


@pytest.fixture
def plug_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Imports modules of a folder as ``--plugins`` does; its modules and what they register are gone after the test."""
    folders: list[Path] = []
    for registry in REGISTRIES:
        monkeypatch.setattr(registry, "_entries", dict(registry))

    def plug(folder: Path, *modules: str) -> None:
        monkeypatch.syspath_prepend(folder)
        folders.append(folder)
        import_plugins(modules)

    yield plug
    for name, module in [*sys.modules.items()]:
        if Path(getattr(module, "__file__", None) or "").parent in folders:
            del sys.modules[name]


OutputsOf = Callable[..., TeacherOutputs]


@pytest.fixture(scope="session")
def outputs_of() -> OutputsOf:
    """What a teacher of given logits [B, L, V] gives, and numbers [B, L, n] that decide its draws."""

    def outputs(logits: Tensor, uniforms: Tensor | None = None) -> TeacherOutputs:
        def numbers(count: int) -> Tensor:
            assert uniforms is not None
            return uniforms[..., :count]

        return TeacherOutputs(logits, {}, {}, {}, numbers)

    return outputs


@pytest.fixture(scope="session")
def signal_of(outputs_of: OutputsOf) -> Callable[..., TeacherSignal]:
    """What a teacher of given logits [B, L, V] says, its k most probable tokens in float32."""

    def signal(logits: Tensor, k: int, temperatures: tuple[float, ...] = (1.0, 2.0)) -> TeacherSignal:
        encoding = TopKEncoding(k=k, temperatures=temperatures, values="float32")
        return TeacherSignal(encoding, encoding.encode(outputs_of(logits), {}))

    return signal


@dataclass(frozen=True)
class _GivenLogits:
    given: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> "_GivenLogits":
        return _GivenLogits(change(self.given))

    def logits(self) -> Tensor:
        return self.given


@pytest.fixture(scope="session")
def others_of() -> Callable[[Tensor], Others]:
    """The tokens that were not kept, known by logits [..., V]."""
    return _GivenLogits


@pytest.fixture(scope="session")
def losses_of_logits() -> Callable[..., tuple[Tensor, dict[str, Tensor]]]:
    """The weighted sum of the terms on given logits [B, L, V], and the terms by name: through a head that is 1."""

    def losses(
        logits: Tensor,
        teachers: Mapping[str, Distribution],
        weights: Mapping[str, float],
        temperature: float,
        divergence: str = "forward",
        tokens: Tensor | None = None,
        hard: float = 0.0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        head = nn.Linear(logits.shape[-1], logits.shape[-1], bias=False, dtype=logits.dtype)
        head.weight = nn.Parameter(torch.eye(logits.shape[-1], dtype=logits.dtype), requires_grad=False)
        shares = [weights[name] for name in teachers]
        terms = NextTokenTerms(tokens, hard, [*teachers.values()], shares, DIVERGENCES[divergence], temperature)
        total, values = head_terms(logits, head, terms)
        return total, dict(zip(("hard", *teachers), values.unbind(), strict=True))

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
def settings_of_run(corpus_directory: Path) -> Callable[..., TrainSettings]:
    """Makes settings of runs on the corpus, to be run only with an output; changes replace whole groups."""

    def make(**changes: object) -> TrainSettings:
        fields = {"corpus": corpus_directory, "output": "run", "model": shape(), "windows": {"length": LENGTH}}
        return TrainSettings.model_validate(fields | changes)

    return make


@pytest.fixture(scope="session")
def make_teacher(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes model directories with random weights, sharp enough to have opinions."""

    def make(architecture: str = "llama", seed: int = 0, **changes: object) -> Path:
        directory = tmp_path_factory.mktemp(f"teacher-{architecture}")
        model = shape(architecture, **changes).build(corpus, seed)
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


@pytest.fixture(scope="session")
def settings_of_capture(teacher: Path, corpus_directory: Path) -> Callable[..., CaptureSettings]:
    """Makes settings of small captures from the corpus; changes replace whole groups."""

    def make(**changes: object) -> CaptureSettings:
        fields = {
            "teacher": teacher,
            "corpus": corpus_directory,
            "output": "cache",
            "windows": {"length": LENGTH},
            "logits": {"kind": "topk", "k": 8},
        }
        return CaptureSettings.model_validate(fields | changes)

    return make


@pytest.fixture
def capture_settings(settings_of_capture: Callable[..., CaptureSettings], tmp_path: Path) -> CaptureSettings:
    """Settings of a small capture into a directory of the test's own."""
    return settings_of_capture(output=tmp_path / "cache")


@pytest.fixture
def hidden_capture(settings_of_capture: Callable[..., CaptureSettings], tmp_path: Path) -> CaptureSettings:
    """The same with hidden states of every layer at five positions, beside the logits."""
    hidden = {"positions": 5, "components": None, "sample_windows": 40}
    return settings_of_capture(output=tmp_path / "cache", hidden=hidden)


@pytest.fixture(scope="session")
def changed() -> Callable[..., Settings]:
    """Settings of any kind with some of them changed; changes replace whole groups."""

    def change(settings: Settings, **changes: object) -> Settings:
        return type(settings).model_validate(settings.as_plain() | changes)

    return change


@pytest.fixture(scope="session")
def normal() -> Callable[..., Tensor]:
    """Draws standard normal numbers by a seed and a shape."""

    def draw(seed: int, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

    return draw


@pytest.fixture(scope="session")
def logits_of(normal: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Logits of a seed and a shape, nats apart."""

    def draw(seed: int, *shape: int, scale: float = 3.0) -> Tensor:
        return scale * normal(seed, *shape)

    return draw


@pytest.fixture(scope="session")
def printed_by() -> Callable[..., str]:
    """Runs a command that succeeds; returns what it prints, for fixtures that serve a whole file."""

    def call(*words: object) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            assert main([*map(str, words)]) == 0
        return printed.getvalue()

    return call


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that ends with status 2; returns the one sentence that says why, on the last line."""

    def call(*words: object) -> str:
        capsys.readouterr()
        assert main([*map(str, words)]) == USER_MISTAKE
        *before, last = capsys.readouterr().err.splitlines()
        assert last.startswith("error: ")
        assert not any(line.startswith("error: ") for line in before)
        return last

    return call


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Reads every file of a folder, by its path there."""

    def read(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    return read


@pytest.fixture(scope="session")
def state_of() -> Callable[..., dict[str, tuple[int, bytes]]]:
    """Reads every file of a folder with the time of its last change, by its path there; some names are left out."""

    def read(folder: Path, *left_out: str) -> dict[str, tuple[int, bytes]]:
        return {
            str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
            for path in folder.rglob("*")
            if path.is_file() and path.name not in left_out
        }

    return read


@pytest.fixture(scope="session")
def states_of() -> Callable[[Path, Tensor], tuple[Tensor, tuple[Tensor, ...]]]:
    """Logits and all hidden states of a model's directory for tokens, in float64, from transformers alone."""

    def compute(directory: Path, tokens: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        model: Any = AutoModelForCausalLM.from_pretrained(directory).double()
        with torch.no_grad():
            output = model(input_ids=tokens, output_hidden_states=True)
        return output.logits, output.hidden_states

    return compute


@pytest.fixture
def student_of_text(settings_of_run: Callable[..., TrainSettings], tmp_path: Path) -> Callable[..., TrainSettings]:
    """Makes settings of a student without teachers, 16 windows in a step; changes replace whole groups."""

    def make(**changes: object) -> TrainSettings:
        return settings_of_run(**({"output": tmp_path / "run", "global_batch": 16} | changes))

    return make


@pytest.fixture
def student_of_cache(
    capture_settings: CaptureSettings, student_of_text: Callable[..., TrainSettings]
) -> Callable[..., TrainSettings]:
    """The same with the cache of `capture_settings` as teacher t, and with its windows."""

    def make(**changes: object) -> TrainSettings:
        teachers = {"t": {"cache": capture_settings.output}}
        return student_of_text(**({"windows": capture_settings.windows, "teachers": teachers} | changes))

    return make


@pytest.fixture(scope="session")
def log_of() -> Callable[..., list[dict[str, Any]]]:
    """Reads the lines of a run's log that have a key, or all; what depends on the machine's speed if `speeds`."""

    def read(settings: TrainSettings, key: str | None = None, *, speeds: bool = False) -> list[dict[str, Any]]:
        lines = map(json.loads, (settings.output / "metrics.jsonl").read_text().splitlines())
        hidden = () if speeds else ("tokens_per_second", "data_wait")
        return [
            {name: value for name, value in line.items() if name not in hidden}
            for line in lines
            if key is None or key in line
        ]

    return read


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
