"""The configurations of published models: real sizes, layer maps, and the losses that were really minimised."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from palenka.cache_teachers.settings import CaptureSettings
from palenka.data.corpus import Corpus
from palenka.data.signals.stream import EncodedBatch
from palenka.ground.command_line import USER_MISTAKE, parse
from palenka.parameters import main as print_parameters
from palenka.train_student.model.shapes import ModelShape
from palenka.train_student.objective.objective import Objective
from palenka.train_student.settings import TeacherSource, TrainSettings
from palenka.train_student.teachers import open_teachers

CONFIGS = Path(__file__).parents[2] / "configs"


def settings_of(name: str) -> TrainSettings:
    return parse(TrainSettings, ["--config", str(CONFIGS / f"{name}.yaml")], "palenka train")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("baselines/gpt2-44m", 26_661_888),
        ("baselines/gpt2-705m", 704_928_768),
        ("baselines/gpt2-small-97m", 97_540_608),
        ("baselines/llama-60m", 38_735_616),
        ("baselines/llama-360m", 359_973_888),
        ("baselines/llama-16m", 16_584_960),
        ("baselines/llama-95m", 95_371_008),
        ("baselines/gptj-97m", 97_304_704),
        ("teachers/gpt2-705m", 704_928_768),
        ("teachers/llama-360m", 359_973_888),
        ("teachers/gpt2-44m", 26_661_888),
        ("teachers/llama-60m", 38_735_616),
        ("students/babyllama1-58m", 58_343_936),
        ("students/distilledgpt-44m", 26_661_888),
        ("students/palenka-58m-l0.1-h0.3", 58_343_936),
        ("students/contrastive-58m", 58_343_936),
        ("students/dskd-one-teacher-58m", 58_343_936),
        ("students/dskd-ensemble-58m", 58_343_936),
        ("students/hidden-state-58m", 58_334_208),
        ("students/as-published/palenka-58m", 58_343_936),
    ],
)
def test_each_shape_has_its_real_size(name: str, parameters: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert settings_of(name).model.num_parameters(16_000) == parameters
    assert print_parameters([str(CONFIGS / f"{name}.yaml")]) == 0
    assert f"{parameters:,}" in capsys.readouterr().out


def test_a_file_without_a_model_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_parameters([str(CONFIGS / "caches" / "llama-360m.yaml")]) == USER_MISTAKE
    assert "has no model; give files of baselines, teachers or students" in capsys.readouterr().err


STRENGTHS = ["0.1", "0.3", "0.5"]


def mapping_student(hidden: str) -> TrainSettings:
    """The student that maps hidden states with a weight."""
    return settings_of(f"students/palenka-58m-l0.1-h{hidden}")


def caches_of(student: TrainSettings) -> Iterator[tuple[TeacherSource, CaptureSettings]]:
    """Each teacher, and the settings of the capture that is read."""
    for source in student.teachers.values():
        assert source.cache is not None
        file = CONFIGS / "caches" / f"{source.cache.name}.yaml"
        yield source, parse(CaptureSettings, ["--config", str(file)], "palenka cache run")


@pytest.mark.parametrize("hidden", STRENGTHS)
def test_the_name_of_a_student_has_its_weight(hidden: str) -> None:
    assert mapping_student(hidden).objective.terms["hidden"].weight == float(hidden)


@pytest.mark.parametrize("hidden", STRENGTHS)
def test_a_student_reads_the_cache_of_its_teacher(hidden: str) -> None:
    for source, cache in caches_of(mapping_student(hidden)):
        assert (source.cache, source.model) == (cache.output, cache.teacher)


@pytest.mark.parametrize("hidden", STRENGTHS)
def test_a_student_maps_every_layer_of_the_cache_to_one_of_its_own(hidden: str) -> None:
    student = mapping_student(hidden)
    assert isinstance(student.model, ModelShape)
    for source, cache in caches_of(student):
        assert cache.hidden is not None
        assert isinstance(source.layers, dict)
        assert list(source.layers) == list(cache.hidden.layers)
        assert max(source.layers.values()) <= student.model.num_hidden_layers


@pytest.mark.parametrize("hidden", STRENGTHS)
def test_hidden_states_take_640_bytes_a_token_at_most_before_compression(hidden: str) -> None:
    for _, cache in caches_of(mapping_student(hidden)):
        assert cache.hidden is not None
        teacher = settings_of(f"teachers/{cache.output.name}").model
        assert isinstance(teacher, ModelShape)
        codes = len(cache.hidden.layers) * cache.hidden.array(teacher.hidden_size, 1).width
        assert codes * cache.hidden.within(128).num_positions() / 128 <= 640


@pytest.mark.parametrize(
    ("name", "hard", "logit"),
    [("babyllama1-58m", 0.5, 0.5), ("distilledgpt-44m", 0.5, 0.5), ("palenka-58m", 1.0, 0.1)],
)
def test_as_published_is_the_loss_of_the_published_code(
    name: str, hard: float, logit: float, corpus: Corpus, make_teacher: Callable[..., Path], make_shape: Any
) -> None:
    """hard · CE + logit · T² · KLDivLoss(batchmean) on [windows, 128, V], of the mean of the teachers' logits."""
    settings = settings_of(f"students/as-published/{name}")
    (source,) = settings.teachers.values()
    assert source.source == "live"
    teachers = {
        member: make_teacher(("gpt2", "llama")[number], seed=number, max_position_embeddings=128)
        for number, member in enumerate(source.ensemble)
    }
    tokens = torch.from_numpy(corpus.tokens[: 3 * settings.windows.length].astype("int64")).view(3, -1)
    shape: ModelShape = make_shape("llama", max_position_embeddings=128)
    student = shape.build(corpus, seed=5)
    with torch.no_grad():
        logits = [AutoModelForCausalLM.from_pretrained(place)(input_ids=tokens).logits for place in teachers.values()]
    output = student(input_ids=tokens, labels=tokens)
    divergence = torch.nn.KLDivLoss(reduction="batchmean")(
        torch.log_softmax(output.logits / 2.0, dim=-1), torch.softmax(torch.stack(logits).mean(0) / 2.0, dim=-1)
    )
    expected = hard * output.loss + logit * 2.0**2 * divergence
    expected.backward()
    gradients = {key: weight.grad.clone() for key, weight in student.named_parameters() if weight.grad is not None}
    student.zero_grad()

    ours = {"corpus": corpus.directory, "model": shape, "teachers": {"both": {"source": "live", "ensemble": teachers}}}
    opened = open_teachers(TrainSettings.model_validate(dict(settings) | ours), corpus, torch.device("cpu"))
    objective = Objective(student, settings.objective, opened.pairs, seed=0)
    batch = opened.complete(EncodedBatch(tokens, torch.zeros(3, 0, dtype=torch.int64), {}))
    loss, _ = objective(batch, settings.weights())
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for key, weight in student.named_parameters():
        torch.testing.assert_close(weight.grad, gradients[key], rtol=1e-4, atol=1e-5)


def test_layer_maps_survive_yaml_and_json(tmp_path: Path) -> None:
    settings = settings_of("students/palenka-58m-l0.1-h0.1")
    settings.write_yaml(tmp_path / "config.yaml")
    assert parse(TrainSettings, ["--config", str(tmp_path / "config.yaml")], "palenka train") == settings
    assert TrainSettings.model_validate(json.loads(settings.model_dump_json())) == settings
