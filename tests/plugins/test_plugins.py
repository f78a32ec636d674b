"""Plug-ins, each one file: captured and trained from end to end, their values against independent float64 ones."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.inspect import inspect
from palenka.cache_teachers.plan import plan
from palenka.cache_teachers.settings import CaptureSettings, InspectSettings, PlanSettings, VerifySettings
from palenka.cache_teachers.verify import verify
from palenka.data.corpus import Corpus
from palenka.data.signals.cache import TeacherCache
from palenka.data.signals.encoding import ENCODINGS
from palenka.data.signals.stream import ReadingOrder
from palenka.data.windows import gather
from palenka.ground.errors import UserError
from palenka.train_student.objective.module import LayerPair
from palenka.train_student.objective.objective import Objective
from palenka.train_student.objective.term import TERMS
from palenka.train_student.settings import TrainSettings
from palenka.train_student.train import train

Changed = Callable[..., CaptureSettings]

PLUGINS = Path(__file__).parent
BATCH = 16
SettingsOfRun = Callable[..., TrainSettings]
FirstStep = Callable[[TrainSettings], tuple[dict[str, float], Tensor, Tensor, Any]]


@pytest.fixture(autouse=True)
def plugins(plug_in: Callable[..., None]) -> None:
    """All of them, for one test."""
    plug_in(PLUGINS, *(path.stem for path in PLUGINS.glob("*.py") if not path.stem.startswith("test_")))


def test_each_is_one_file_of_forty_lines_at_most() -> None:
    for path in PLUGINS.glob("*.py"):
        assert path.stem.startswith("test_") or len(path.read_text().splitlines()) <= 40, path


def outputs_of(directory: Path, tokens: Tensor) -> Any:
    """Logits and hidden states of a model in float64, from transformers alone."""
    model: Any = AutoModelForCausalLM.from_pretrained(directory).double().eval()
    with torch.no_grad():
        return model(input_ids=tokens, output_hidden_states=True)


@pytest.fixture
def first_step(corpus: Corpus, log_of: Callable[..., list[dict[str, Any]]]) -> FirstStep:
    """Trains; what the log says of step 1, its tokens and positions, and the new student's outputs, float64."""

    def step(settings: TrainSettings) -> tuple[dict[str, float], Tensor, Tensor, Any]:
        train(settings)
        trained = log_of(settings, "loss")
        assert len(trained) > 5
        assert trained[-1]["loss"] < trained[0]["loss"]
        order = ReadingOrder(
            settings.windows, len(corpus.tokens), settings.seed, settings.epochs, settings.fraction, batch=BATCH
        )
        ((view, _, indices),) = order.pieces(0, BATCH)
        tokens = torch.from_numpy(gather(corpus.tokens, settings.windows, view, indices))
        positions = torch.from_numpy(settings.windows.positions(view, indices, 5))
        student: Any = settings.model.build(corpus, settings.seed).double().eval()
        with torch.no_grad():
            return trained[0], tokens, positions, student(input_ids=tokens, output_hidden_states=True)

    return step


@pytest.fixture
def run_settings(student_of_cache: SettingsOfRun, capture_settings: CaptureSettings) -> SettingsOfRun:
    """Makes settings of a short run with a cached teacher t, every step of which is logged."""

    def make(objective: Mapping[str, object], **teacher: object) -> TrainSettings:
        return student_of_cache(
            fraction=0.2,
            global_batch=BATCH,
            optimizer={"learning_rate": 1e-2, "warmup_steps": 2},
            log_every=1,
            teachers={"t": {"cache": capture_settings.output, **teacher}},
            objective=objective,
        )

    return make


@pytest.fixture
def whole(capture_settings: CaptureSettings, changed: Changed) -> CaptureSettings:
    """A cache of an encoding of logits that a plug-in brings."""
    settings = changed(capture_settings, logits={"kind": "whole"})
    capture(settings)
    return settings


@pytest.fixture
def exact(teacher: Path, corpus: Corpus, capture_settings: CaptureSettings) -> Tensor:
    """The teacher's logits for the first 8,192 tokens on disk, on which an encoding is measured, in float64."""
    rule, slots = capture_settings.windows, slice(2**13 // capture_settings.windows.length)
    indices = rule.slots(len(corpus.tokens), 0)[slots]
    logits: Tensor = outputs_of(teacher, torch.from_numpy(gather(corpus.tokens, rule, 0, indices))).logits
    return logits


def test_an_encoding_is_measured_once_and_read_as_it_was_written(whole: CaptureSettings, exact: Tensor) -> None:
    cache = TeacherCache(whole.output)
    mean = exact.log_softmax(-1).flatten(0, 1).mean(0)
    torch.testing.assert_close(cache.measured.statics["mean"].double(), mean, rtol=1e-5, atol=1e-5)
    for temperature in (1.0, 2.0):
        found = cache.read(0, np.arange(len(exact))).at(temperature).log_kept.double()
        torch.testing.assert_close(found, (exact / temperature).log_softmax(-1), rtol=2e-3, atol=2e-3)


def test_an_encoding_says_what_it_is(whole: CaptureSettings) -> None:
    cache = TeacherCache(whole.output)
    assert cache.manifest.logits.as_plain() == {"kind": "whole", "temperatures": [1.0, 2.0]}
    assert cache.manifest.logits.summary() == "the whole distribution"
    assert cache.kept_mass() == {1.0: 1.0, 2.0: 1.0}


def test_an_encoding_is_verified(whole: CaptureSettings) -> None:
    checked = verify(VerifySettings.model_validate(whole.as_plain()))
    assert set(checked["differing_codes"].values()) == {0.0}
    assert all(abs(divergence) < 1e-5 for divergence in checked["rounding"].values())


def test_an_encoding_is_inspected(whole: CaptureSettings, exact: Tensor) -> None:
    entropy = -(exact.softmax(-1) * exact.log_softmax(-1)).sum(-1).mean().item()
    shown = inspect(InspectSettings(cache=whole.output, sample=512))
    assert shown["entropy"]["1.0"] == pytest.approx(entropy, rel=5e-2)


def test_an_encoding_is_planned(whole: CaptureSettings, corpus: Corpus) -> None:
    foretold = plan(PlanSettings.model_validate(whole.as_plain()))
    assert foretold["bytes_per_token"]["logits/beside_mean"] < 2 * corpus.vocabulary_size


@pytest.mark.usefixtures("whole")
def test_a_student_learns_from_an_encoding(teacher: Path, run_settings: SettingsOfRun, first_step: FirstStep) -> None:
    logged, tokens, _, student = first_step(run_settings({"hard": 0.5, "logit": 0.5}))
    theirs, ours = ((logits / 2).log_softmax(-1) for logits in (outputs_of(teacher, tokens).logits, student.logits))
    expected = 4 * (theirs.exp() * (theirs - ours)).sum(-1).mean().item()
    assert logged["logit/t"] == pytest.approx(expected, rel=1e-3)


LAYERS = (0, 2)


@pytest.fixture
def signs(hidden_capture: CaptureSettings, changed: Changed) -> CaptureSettings:
    """A cache of an encoding of hidden states that a plug-in brings."""
    settings = changed(hidden_capture, hidden={"kind": "signs", "positions": 5, "layers": list(LAYERS)})
    capture(settings)
    return settings


@pytest.fixture
def samples(hidden_capture: CaptureSettings, corpus: Corpus, teacher: Path) -> dict[int, Tensor]:
    """What each layer is measured on: the first windows on disk, without position 0."""
    states = outputs_of(teacher, corpus_windows(corpus, hidden_capture)).hidden_states
    return {layer: states[layer][:, 1:].flatten(0, 1) for layer in LAYERS}


def mean_and_deviation(sample: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of a layer's states, and the RMS of their deviations."""
    return sample.mean(0), sample.var(0, correction=0).mean().sqrt()


def test_an_encoding_of_hidden_states_is_measured_once(signs: CaptureSettings, samples: dict[int, Tensor]) -> None:
    layers = TeacherCache(signs.output, [f"teacher/{layer}" for layer in LAYERS]).measured.layers
    for index, sample in samples.items():
        mean, deviation = mean_and_deviation(sample)
        layer = layers[f"teacher/{index}"]
        torch.testing.assert_close(layer.mean.double(), mean, rtol=1e-4, atol=1e-5)
        assert float(layer.rms_deviation) == pytest.approx(deviation.item(), rel=1e-4)  # no dimension at all


def test_a_layer_from_which_no_codes_are_predicted_is_read_by_itself(signs: CaptureSettings) -> None:
    assert TeacherCache(signs.output, ["teacher/2"]).measured.layers.keys() == {"teacher/2"}


def test_the_error_of_an_encoding_of_hidden_states_is_the_part_of_the_variance_that_it_loses(
    signs: CaptureSettings, samples: dict[int, Tensor]
) -> None:
    shown = inspect(InspectSettings(cache=signs.output))
    assert shown["hidden_encoding"] == "signs"
    for index, sample in samples.items():
        mean, deviation = mean_and_deviation(sample)
        centred = sample - mean
        lost = (centred - deviation * centred.sign()).square().sum() / centred.square().sum()
        assert shown["hidden_error"][f"teacher/{index}"] == pytest.approx(lost.item(), rel=0.1)


def test_an_encoding_of_hidden_states_is_verified(signs: CaptureSettings) -> None:
    checked = verify(VerifySettings.model_validate(signs.as_plain()))
    assert set(checked["differing_codes"].values()) == {0.0}


@pytest.mark.usefixtures("signs")
def test_a_student_learns_from_an_encoding_of_hidden_states(
    samples: dict[int, Tensor], teacher: Path, run_settings: SettingsOfRun, first_step: FirstStep
) -> None:
    objective = {"hard": 0.5, "hidden": {"weight": 0.5, "projection": "none"}}
    logged, tokens, positions, student = first_step(run_settings(objective, layers={2: 2}))
    mean, deviation = mean_and_deviation(samples[2])
    rows = torch.arange(BATCH)[:, None]
    theirs = (outputs_of(teacher, tokens).hidden_states[2][rows, positions] - mean).sign()
    ours = (student.hidden_states[2][rows, positions] - mean) / deviation
    assert logged["hidden/t"] == pytest.approx((ours - theirs).square().mean().item(), rel=1e-3)


def test_a_cache_of_a_plugin_that_was_not_named(
    capture_settings: CaptureSettings, monkeypatch: pytest.MonkeyPatch, changed: Changed
) -> None:
    capture(changed(capture_settings, fraction=0.1, logits={"kind": "whole"}))
    monkeypatch.setattr(ENCODINGS, "_entries", {name: each for name, each in ENCODINGS.items() if name != "whole"})
    with pytest.raises(UserError, match="logits.kind is 'whole', which comes from a plug-in; .* give --plugins MODULE"):
        TeacherCache(capture_settings.output)


def test_a_divergence(
    capture_settings: CaptureSettings,
    teacher: Path,
    run_settings: SettingsOfRun,
    changed: Changed,
    first_step: FirstStep,
) -> None:
    capture(changed(capture_settings, logits={"kind": "topk", "k": 8, "values": "float32"}))
    settings = run_settings({"hard": 0.5, "logit": 0.5, "divergence": "skewed"})
    logged, tokens, _, student = first_step(settings)
    said = outputs_of(teacher, tokens).logits
    ids = said.topk(8).indices

    def outcomes(logits: Tensor) -> Tensor:
        """The eight most probable of the teacher's, and all others as one."""
        probabilities = (logits / 2).softmax(-1)
        return torch.cat([probabilities.gather(-1, ids), probabilities.scatter(-1, ids, 0).sum(-1, keepdim=True)], -1)

    t, q = outcomes(said), outcomes(student.logits)
    expected = 4 * (t * (t / (0.1 * t + 0.9 * q)).log()).sum(-1).mean().item()
    assert logged["logit/t"] == pytest.approx(expected, rel=1e-4)


def test_a_term(
    hidden_capture: CaptureSettings,
    corpus: Corpus,
    teacher: Path,
    run_settings: SettingsOfRun,
    changed: Changed,
    first_step: FirstStep,
) -> None:
    hidden = {"positions": 5, "components": None, "sample_windows": 40, "values": "float32"}
    capture(changed(hidden_capture, hidden=hidden))
    settings = run_settings({"hard": 0.5, "last_cosine": {"weight": 2.0, "schedule": {"start": 1.0}}})
    logged, tokens, positions, student = first_step(settings)
    # The map that a run of this seed begins with.
    key, layer = "teacher/2", TeacherCache(hidden_capture.output, ["teacher/2"]).measured.layers["teacher/2"]
    begun = Objective(settings.model.build(corpus, 0), settings.objective, {"t": [LayerPair(key, 2, layer)]}, 0)
    linear = begun.trained_beside()
    weight, bias = (linear[f"last_cosine.maps.teacher_t.{name}"].double() for name in ("weight", "bias"))
    rows = torch.arange(BATCH)[:, None]
    first = corpus_windows(corpus, hidden_capture)
    mean = outputs_of(teacher, first).hidden_states[2][:, 1:].flatten(0, 1).mean(0)
    theirs = outputs_of(teacher, tokens).hidden_states[2][rows, positions] - mean
    ours = F.linear(student.hidden_states[2][rows, positions], weight, bias)
    cosines = (ours * theirs).sum(-1) / (ours.norm(dim=-1) * theirs.norm(dim=-1))
    assert logged["last_cosine/t"] == pytest.approx(1 - cosines.mean().item(), rel=1e-4)
    assert logged["weight/last_cosine"] == 1.0
    assert logged["loss"] == pytest.approx(0.5 * logged["hard"] + logged["last_cosine/t"], rel=1e-5)
    kept = load_file(settings.output / "projections.safetensors")
    assert kept.keys() == linear.keys()
    assert not torch.equal(kept["last_cosine.maps.teacher_t.weight"], linear["last_cosine.maps.teacher_t.weight"])


def corpus_windows(corpus: Corpus, settings: CaptureSettings) -> Tensor:
    """The forty first windows on disk, on which layers are measured."""
    slots = settings.windows.slots(len(corpus.tokens), 0)[:40]
    return torch.from_numpy(gather(corpus.tokens, settings.windows, 0, slots))


def test_a_run_is_the_same_where_terms_that_it_does_not_use_are_registered(
    settings_of_run: SettingsOfRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_plugin = settings_of_run()
    assert "last_cosine" in with_plugin.objective.terms
    monkeypatch.setattr(TERMS, "_entries", {name: term for name, term in TERMS.items() if name != "last_cosine"})
    assert settings_of_run().as_plain() == with_plugin.as_plain()


def test_what_a_plugin_registers_is_named_in_errors(
    settings_of_run: SettingsOfRun, capture_settings: CaptureSettings, changed: Changed
) -> None:
    with pytest.raises(ValueError, match=r"forward.*reverse.*js.*skewed"):
        settings_of_run(objective={"divergence": "sideways"})
    with pytest.raises(ValueError, match=r"Input should be 'topk', .*'hybrid'.* 'whole'"):
        changed(capture_settings, logits={"kind": "half"})
    with pytest.raises(ValueError, match="'whole' or what a module named in plugins registers"):
        changed(capture_settings, logits={"kind": "half"})
    with pytest.raises(ValueError, match=r"objective\.last_cosine\.weight"):
        settings_of_run(objective={"last_cosine": -1})
