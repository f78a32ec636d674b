"""Every distillation method from its file, shrunk: from caches and from live teachers, with every term pulling."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.settings import CaptureSettings
from palenka.data.signals.hidden import ComponentsEncoding
from palenka.ground.command_line import parse
from palenka.train_student.model.shapes import ModelShape
from palenka.train_student.objective.settings import HiddenTerm
from palenka.train_student.settings import TeacherSource, TrainSettings
from palenka.train_student.train import train

STUDENTS = Path(__file__).parents[2] / "configs" / "students"
METHODS = ("contrastive-58m", "dskd-one-teacher-58m", "dskd-ensemble-58m", "hidden-state-58m", "palenka-58m-l0.1-h0.3")
PULLING = {"contrastive-58m": "contrastive", "hidden-state-58m": "hidden", "palenka-58m-l0.1-h0.3": "hidden"}


@pytest.fixture(scope="module")
def sources(
    settings_of_capture: Callable[..., CaptureSettings],
    make_teacher: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Two teachers and their ensemble by name, each as a cache and live."""
    folder = tmp_path_factory.mktemp("caches")
    models = {"gpt2": make_teacher("gpt2", 1, hidden_size=24), "llama": make_teacher("llama", 2)}
    spoken: dict[str, dict[str, Any]] = {name: {"model": model} for name, model in models.items()}
    spoken["ensemble"] = {"ensemble": models}
    found = {}
    for name, speaker in spoken.items():
        hidden = {"positions": 5, "sample_windows": 32, "values": "float32", "components": None}
        settings = settings_of_capture(
            teacher=speaker.get("model"),
            ensemble=speaker.get("ensemble", {}),
            output=folder / name,
            logits={"kind": "topk", "k": 32, "values": "float32"},
            hidden=hidden,
        )
        capture(settings)
        live = {"source": "live", "k": 32, "hidden": hidden, **speaker}
        found[name] = {"cache": {"cache": folder / name}, "live": live}
    return found


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_from_its_file_the_same_from_caches_and_from_live_teachers(
    name: str,
    sources: dict[str, dict[str, dict[str, Any]]],
    corpus_directory: Path,
    tmp_path: Path,
    make_shape: Callable[..., ModelShape],
    log_of: Callable[..., list[dict[str, Any]]],
) -> None:
    published = yaml.safe_load((STUDENTS / f"{name}.yaml").read_text())
    logs = {}
    for source in ("cache", "live"):
        shrunk: dict[str, Any] = {
            "corpus": str(corpus_directory),
            "output": str(tmp_path / source),
            "model": make_shape(num_hidden_layers=3).as_plain(),
            "windows": {"length": 16},
            "fraction": 0.2,
            "epochs": 1,
            "global_batch": 8,
            "micro_batch": 8,
            "precision": "float32",
            "optimizer": {"learning_rate": 5e-3, "warmup_steps": 3},
            "teachers": {
                teacher: json.loads(json.dumps(sources[teacher][source], default=str))
                | {"weight": given.get("weight", 1.0), "layers": {1: 1, 2: 3}}
                for teacher, given in published["teachers"].items()
            },
        }
        (tmp_path / f"{source}.yaml").write_text(yaml.safe_dump(published | shrunk))
        settings = parse(TrainSettings, ["--config", str(tmp_path / f"{source}.yaml")], "palenka train")
        assert settings.objective == parse_published(name).objective
        train(settings)
        logs[source] = log_of(settings)
    first = logs["cache"][0]
    ratios = {key: value for key, value in first.items() if key.startswith("gradient_ratio/")}
    kind = PULLING.get(name, "auxiliary")
    with_logits = {"logit"} if published["objective"].get("logit") else set()
    assert {key.split("/")[1] for key in ratios} == {kind} | with_logits
    assert all(value > 1e-4 for value in ratios.values())
    trained = [line for line in logs["cache"] if "loss" in line]
    assert trained[-1]["loss"] < trained[0]["loss"]
    for ours, theirs in zip(trained, (line for line in logs["live"] if "loss" in line), strict=True):
        terms = [key for key in ours if key == "loss" or key.split("/")[0] in ("hard", "logit", kind)]
        assert len(terms) >= 3
        # A live teacher measures its layers on other batches of windows: its statistics agree, but not bit for bit.
        assert {key: ours[key] for key in terms} == pytest.approx({key: theirs[key] for key in terms}, rel=2e-2)
    beside = tmp_path / "cache" / "projections.safetensors"
    assert beside.exists() == (name != "hidden-state-58m")
    if beside.exists():
        assert {key.split(".")[0] for key in load_file(beside)} == {kind}


def parse_published(name: str) -> TrainSettings:
    return parse(TrainSettings, ["--config", str(STUDENTS / f"{name}.yaml")], "palenka train")


def published_caches(name: str) -> Iterator[tuple[TeacherSource, CaptureSettings]]:
    """Each teacher of a method, and the settings of the capture that it reads."""
    for source in parse_published(name).teachers.values():
        assert source.cache is not None
        file = STUDENTS.parent / "caches" / f"{source.cache.name}.yaml"
        yield source, parse(CaptureSettings, ["--config", str(file)], "palenka cache run")


def widths_of(cache: CaptureSettings) -> list[int]:
    """The width of each model that is captured."""
    files = [STUDENTS.parent / f"{path.relative_to('runs')}.yaml" for path in cache.models().values()]
    return [yaml.safe_load(file.read_text())["model"]["hidden_size"] for file in files]


@pytest.mark.parametrize("name", METHODS)
def test_a_student_reads_the_cache_of_its_teacher(name: str) -> None:
    for source, cache in published_caches(name):
        assert (source.cache, source.model) == (cache.output, cache.teacher)


@pytest.mark.parametrize("name", METHODS)
def test_the_cache_holds_the_layers_that_the_student_maps_to_its_own(name: str) -> None:
    student = parse_published(name).model
    assert isinstance(student, ModelShape)
    for source, cache in published_caches(name):
        assert cache.hidden is not None
        assert isinstance(source.layers, dict)
        assert set(source.layers) <= set(cache.hidden.layers)
        assert max(source.layers.values()) <= student.num_hidden_layers


@pytest.mark.parametrize("name", METHODS)
def test_the_cache_has_the_temperature_of_the_student(name: str) -> None:
    temperature = parse_published(name).objective.temperature
    assert all(temperature in cache.logits.temperatures for _, cache in published_caches(name))


@pytest.mark.parametrize("name", METHODS)
def test_hidden_states_take_640_bytes_a_token_at_most_before_compression(name: str) -> None:
    for _, cache in published_caches(name):
        assert cache.hidden is not None
        codes = len(cache.hidden.layers) * sum(cache.hidden.array(width, 1).width for width in widths_of(cache))
        assert codes * cache.hidden.within(128).num_positions() / 128 <= 640


def test_without_a_projection_widths_are_equal_and_no_component_is_left_out() -> None:
    objectives = {name: parse_published(name).objective.terms["hidden"] for name in METHODS}
    unprojected = [n for n, each in objectives.items() if isinstance(each, HiddenTerm) and each.projection == "none"]
    assert unprojected == ["hidden-state-58m"]
    student = parse_published("hidden-state-58m")
    assert isinstance(student.model, ModelShape)
    for _, cache in published_caches("hidden-state-58m"):
        assert widths_of(cache) == [student.model.hidden_size]
        assert isinstance(cache.hidden, ComponentsEncoding)
        assert cache.hidden.components is None
