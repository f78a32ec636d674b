"""Deep supervision: the term against its definition in float64, and what its gradient reaches."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from transformers import AutoModelForCausalLM

from palenka.data.corpus import Corpus
from palenka.data.signals.stream import Batch, EncodedBatch
from palenka.ground.errors import UserError
from palenka.train_student.model.shapes import ModelShape
from palenka.train_student.objective.objective import Objective
from palenka.train_student.settings import TrainSettings
from palenka.train_student.teachers import Teachers, open_teachers

CPU = torch.device("cpu")
SettingsOfRun = Callable[..., TrainSettings]
DEPTH = 4


@pytest.fixture(scope="module")
def models(make_teacher: Callable[..., Path]) -> dict[str, Path]:
    return {"a": make_teacher("llama", seed=1), "b": make_teacher("gpt2", seed=2, hidden_size=24)}


def settings_with(
    settings_of_run: SettingsOfRun, model: ModelShape, models: Mapping[str, Path], **auxiliary: object
) -> TrainSettings:
    """Of a student with live teachers, one or an ensemble, and the auxiliary term alone."""
    hidden = {"positions": 5, "values": "float32", "sample_windows": 40}
    one_or_more = {"ensemble": models} if len(models) > 1 else {"model": models["a"]}
    return settings_of_run(
        model=model,
        teachers={"t": {"source": "live", "hidden": hidden, **one_or_more}},
        objective={"hard": 0.0, "auxiliary": {"weight": 1.0, **auxiliary}},
    )


def opened(settings: TrainSettings, corpus: Corpus) -> tuple[Teachers, Batch]:
    """The teachers, and what they say of ten windows."""
    teachers = open_teachers(settings, corpus, CPU)
    length = settings.windows.length
    tokens = torch.from_numpy(corpus.tokens[: 10 * length].astype("int64")).view(10, length)
    positions = torch.stack([torch.randperm(length - 1, generator=torch.Generator().manual_seed(n)) for n in range(10)])
    return teachers, teachers.complete(EncodedBatch(tokens, positions[:, :5] + 1, {}))


def adaptive(losses: list[Tensor]) -> Tensor:
    values = torch.tensor([loss.item() for loss in losses], dtype=torch.float64)
    shares = values.exp() / values.exp().sum()
    return sum((share * loss for share, loss in zip(shares, losses, strict=True)), torch.zeros(()).double())


@pytest.mark.parametrize("names", ["a", "ab"])
def test_the_term_and_its_gradients_are_those_of_the_definition(
    names: str,
    models: dict[str, Path],
    corpus: Corpus,
    make_shape: Callable[..., ModelShape],
    settings_of_run: SettingsOfRun,
) -> None:
    spoken_by = {name: models[name] for name in names}
    options = {"width": 6, "dropout": 0.0, "positions": 3, "class_weight": 0.3, "feature_weight": 0.9}
    settings = settings_with(settings_of_run, make_shape("gpt2", num_hidden_layers=DEPTH), spoken_by, **options)
    teachers, batch = opened(settings, corpus)
    student = settings.model.build(corpus, seed=3)
    objective = Objective(student, settings.objective, teachers.pairs, seed=5)
    loss, parts = objective(batch, settings.weights())
    assert parts.keys() == {"auxiliary/t"}
    loss.backward()
    found = {name: weight.grad.clone() for name, weight in objective.named_parameters() if weight.grad is not None}

    objective.zero_grad()
    objective.double()
    rows, few = torch.arange(10)[:, None], batch.positions[:, :3]
    spoken = {}
    for name, directory in spoken_by.items():
        model: Any = AutoModelForCausalLM.from_pretrained(directory).double()
        with torch.no_grad():
            spoken[name] = model(batch.tokens, output_hidden_states=True)
    wanted = (torch.stack([output.logits for output in spoken.values()]).mean(0) / 2).softmax(-1)
    own: Any = student(batch.tokens, output_hidden_states=True)

    def divergence(logits: Tensor, target: Tensor) -> Tensor:
        entropy = -(target * target.log()).sum(-1)
        return 4 * (-(target * F.log_softmax(logits / 2, -1)).sum(-1) - entropy).mean()

    auxiliary: Any = objective.terms["auxiliary"]
    classes, features = [divergence(own.logits[rows, few], wanted[rows, few])], []
    for layer in range(1, DEPTH + 1):
        states = own.hidden_states[layer][rows, batch.positions]
        if layer < DEPTH:
            first, _, _, second = auxiliary.heads[layer - 1]
            hidden = F.gelu(own.hidden_states[layer][rows, few] @ first.weight.T + first.bias)
            classes.append(divergence(hidden @ second.weight.T + second.bias, wanted[rows, few]))
        distances = []
        for number, (name, output) in enumerate(spoken.items()):
            key = f"{name if len(names) > 1 else 'teacher'}/2"
            layer_there = next(pair.layer for pair in teachers.pairs["t"] if pair.key == key)
            variance = layer_there.statics()["variance"].double()
            linear = auxiliary.features[layer - 1].projections["teacher_t"][number].linear
            target = output.hidden_states[2][rows, batch.positions] - layer_there.mean.double()
            errors = (variance.mean().sqrt() * (states @ linear.weight.T + linear.bias) - target).square().sum(-1)
            distances.append(errors.mean() / variance.sum())
        features.append(torch.stack(distances).mean())
    expected = 0.3 * adaptive(classes) + 0.9 * adaptive(features)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, weight in objective.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.any(), name
        torch.testing.assert_close(found[name].double(), weight.grad, rtol=1e-3, atol=1e-5)


def test_layers_that_lag_weigh_more_and_heads_drop_out_while_they_train(
    models: dict[str, Path],
    corpus: Corpus,
    make_shape: Callable[..., ModelShape],
    settings_of_run: SettingsOfRun,
) -> None:
    settings = settings_with(settings_of_run, make_shape(num_hidden_layers=DEPTH), {"a": models["a"]}, dropout=0.5)
    teachers, batch = opened(settings, corpus)
    objective = Objective(settings.model.build(corpus, 3), settings.objective, teachers.pairs, seed=5)
    objective.eval()
    weights = settings.weights()
    still = objective(batch, weights)[0].item()
    assert objective(batch, weights)[0].item() == still
    objective.train()
    assert objective(batch, weights)[0].item() != objective(batch, weights)[0].item()
    objective.eval()
    auxiliary: Any = objective.terms["auxiliary"]
    with torch.no_grad():  # the head of layer 2 is worse than all others
        auxiliary.heads[1][3].weight.mul_(50)
    loss, _ = objective(batch, weights)
    loss.backward()
    norms = [float(head[3].bias.grad.norm()) for head in auxiliary.heads]
    assert norms[1] > 20 * max(norms[0], norms[2])


@pytest.mark.parametrize(
    ("temperature", "message"),
    [
        (2.0, "holds no hidden states, but objective.auxiliary is 0.5"),
        (3.0, "temperatures 1.0, 2.0, but objective.temperature is 3.0"),
    ],
)
def test_a_cache_without_what_the_term_needs_is_refused(
    cache_directory: Path, corpus: Corpus, settings_of_run: SettingsOfRun, temperature: float, message: str
) -> None:
    objective = {"auxiliary": 0.5, "temperature": temperature}
    settings = settings_of_run(teachers={"t": {"cache": cache_directory}}, objective=objective)
    with pytest.raises(UserError, match=message):
        open_teachers(settings, corpus, CPU)
