"""The hidden term against its definition in float64, from caches and live, and what it refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.settings import CaptureSettings
from palenka.data.corpus import Corpus
from palenka.data.signals.components import Components
from palenka.data.signals.encodings import TopKEncoding
from palenka.data.signals.hidden import ComponentsEncoding
from palenka.data.signals.signal import TeacherSignal
from palenka.data.signals.stream import Batch, ReadingOrder, read_batch
from palenka.ground.errors import UserError
from palenka.train_student.model.shapes import ModelShape
from palenka.train_student.objective.hidden import Projection, distances
from palenka.train_student.objective.module import LayerPair, StudentOutputs
from palenka.train_student.objective.objective import Objective
from palenka.train_student.settings import TeacherSource, TrainSettings
from palenka.train_student.teachers import Teachers, open_teachers
from palenka.train_student.train import train

Changed = Callable[..., CaptureSettings]
StatesOf = Callable[[Path, Tensor], tuple[Tensor, tuple[Tensor, ...]]]

CPU = torch.device("cpu")
SettingsOfRun = Callable[..., TrainSettings]


def coordinates(width: int, components: int | None) -> Components:
    """Coordinates of states of a width that are far from 0 and whose deviations differ."""
    states = 50 + torch.randn(60, width) @ torch.randn(width, width) * torch.logspace(-1, 1, width)
    fit = ComponentsEncoding(values="float32", components=components).fit()
    fit.add(states)
    layer = fit.finish()
    assert isinstance(layer, Components)
    return layer


def left_of_one(
    distance: str, projection: Projection, layer: Components, student: Tensor, positions: Tensor, target: Tensor
) -> Tensor:
    """What one layer's projection leaves, in float64 as it is defined, of states [B, L, S] and a target [B, P, C]."""
    unit, rows = layer.variance.double().mean().sqrt(), torch.arange(len(positions))[:, None]
    ours, theirs = student.double()[rows, positions], unit * target.double()  # in the teacher's own units
    if projection.linear is not None:
        ours = unit * (ours @ projection.linear.weight.double().T + projection.linear.bias.double())
    else:
        centred = ours - layer.mean.double()
        ours = centred if layer.basis is None else centred @ layer.basis.double().T
    if distance == "cosine":
        cosines: Tensor = (ours * theirs).sum(-1) / (ours.norm(dim=-1) * theirs.norm(dim=-1))
        return 1 - cosines.mean()
    squares: Tensor = (ours - theirs).square().sum(-1).mean()
    return squares / layer.variance.double().sum() if distance == "r2" else squares / layer.num_components


@pytest.mark.parametrize("distance", ["r2", "mse", "cosine"])
@pytest.mark.parametrize("kind", ["linear", "none"])
def test_all_layers_at_once_are_each_layer_by_itself_in_float64(distance: Any, kind: Any) -> None:
    torch.manual_seed(0)
    # Two models of an ensemble: three layers of one, of 12 components, between two of the other, of 5.
    layers = {f"m/{number}": coordinates(12, 5 if number in (1, 3) else None) for number in range(5)}
    if kind == "linear":
        layers["m/1"] = coordinates(9, 5)  # a width that only its components hide
    projections = [
        Projection(12, LayerPair(key, number % 4, layer), kind) for number, (key, layer) in enumerate(layers.items())
    ]
    states = [torch.randn(3, 8, 12, requires_grad=True) for _ in range(4)]
    positions = torch.stack([torch.randperm(8)[:6] for _ in range(3)])
    hidden = {key: torch.randn(3, 5, layer.num_components) for key, layer in layers.items()}
    signal = TeacherSignal(TopKEncoding(), {}, {}, hidden)
    student = StudentOutputs(states[-1], states, None)
    found = distances(projections, student, signal, positions, distance)
    expected = torch.stack(
        [
            left_of_one(distance, each, layer, states[each.pair.student_layer], positions[:, :5], hidden[key])
            for each, (key, layer) in zip(projections, layers.items(), strict=True)
        ]
    )
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
    weights = torch.randn(5, dtype=torch.float64)
    leaves = [*states, *(parameter for each in projections for parameter in each.parameters())]
    ours = torch.autograd.grad((weights.float() * found).sum(), leaves)
    for one, other in zip(ours, torch.autograd.grad((weights * expected).sum(), leaves), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * float(other.abs().max()))


def batch_of(teachers: Teachers, settings: TrainSettings, corpus: Corpus) -> Batch:
    order = ReadingOrder(settings.windows, len(corpus.tokens), seed=3, epochs=1, fraction=settings.fraction)
    return teachers.complete(read_batch(corpus, order, teachers.caches, 5, 25, teachers.num_positions))


def test_a_live_teacher_and_a_float32_cache_of_all_positions_give_the_same_loss_and_gradients(
    capture_settings: CaptureSettings,
    corpus: Corpus,
    teacher: Path,
    make_shape: Callable[..., ModelShape],
    settings_of_run: SettingsOfRun,
    changed: Changed,
) -> None:
    everything = {
        "positions": capture_settings.windows.length - 1,
        "values": "float32",
        "sample_windows": 50,
        "components": None,
    }
    logits = {"k": corpus.vocabulary_size, "values": "float32"}
    capture(changed(capture_settings, hidden=everything, logits=logits))
    live = {"source": "live", "model": teacher, "hidden": everything}
    losses, gradients = [], []
    for source in ({"cache": capture_settings.output}, live):
        settings = settings_of_run(
            model=make_shape("gpt2", num_hidden_layers=4),
            teachers={"t": {"weight": 0.8, **source}},
            objective={"hard": 0.5, "logit": 0.7, "hidden": 0.3},
        )
        opened = open_teachers(settings, corpus, CPU)
        student = settings.model.build(corpus, seed=9)
        objective = Objective(student, settings.objective, opened.pairs, seed=2)
        loss, parts = objective(batch_of(opened, settings, corpus), settings.weights())
        assert parts.keys() == {"hard", "logit/t", "hidden/t"}
        loss.backward()
        losses.append(loss.item())
        gradients.append({name: weight.grad for name, weight in objective.named_parameters()})
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert len(gradients[0]) > 50
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-6)


def test_the_hidden_term_is_its_definition_in_float64(
    hidden_capture: CaptureSettings,
    corpus: Corpus,
    teacher: Path,
    make_shape: Callable[..., ModelShape],
    settings_of_run: SettingsOfRun,
    states_of: StatesOf,
) -> None:
    capture(hidden_capture)
    settings = settings_of_run(
        model=make_shape(hidden_size=24, num_hidden_layers=3),
        teachers={"t": {"cache": hidden_capture.output, "layers": {0: 1, 2: 3}, "weight": 0.5}},
        objective={"hard": 0.0, "hidden": 0.3},
    )
    opened = open_teachers(settings, corpus, CPU)
    student: Any = settings.model.build(corpus, seed=4)
    objective: Any = Objective(student, settings.objective, opened.pairs, seed=2)
    batch = batch_of(opened, settings, corpus)
    loss, parts = objective(batch, settings.weights())
    _, spoken = states_of(teacher, batch.tokens)
    own = student.double()(input_ids=batch.tokens, output_hidden_states=True).hidden_states
    ratios = []
    for number, (there, here) in enumerate(((0, 1), (2, 3))):
        linear = objective.terms["hidden"].layers.projections["teacher_t"][number].linear.double()
        layer = opened.pairs["t"][number].layer
        variance = layer.statics()["variance"].double()
        rows = torch.arange(len(batch.tokens))[:, None]
        predicted = variance.mean().sqrt() * linear(own[here][rows, batch.positions])
        target = spoken[there][rows, batch.positions] - layer.mean.double()
        ratios.append((predicted - target).square().sum(-1).mean() / variance.sum())
    expected = torch.stack(ratios).mean()
    assert parts["hidden/t"].item() == pytest.approx(expected.item(), rel=2e-3)  # the cache's int8
    assert loss.item() == pytest.approx(0.3 * 0.5 * parts["hidden/t"].item(), rel=1e-6)


def test_the_term_moves_student_and_projections(
    hidden_capture: CaptureSettings, corpus: Corpus, settings_of_run: SettingsOfRun
) -> None:
    capture(hidden_capture)
    settings = settings_of_run(teachers={"t": {"cache": hidden_capture.output}}, objective={"hard": 0.0, "hidden": 1.0})
    opened = open_teachers(settings, corpus, CPU)
    objective = Objective(settings.model.build(corpus, seed=4), settings.objective, opened.pairs, seed=2)
    loss, _ = objective(batch_of(opened, settings, corpus), settings.weights())
    loss.backward()
    unmoved = {name for name, weight in objective.named_parameters() if weight.grad is None or not weight.grad.any()}
    assert unmoved == set()


def test_an_empty_map_and_options_of_the_other_source_are_refused() -> None:
    with pytest.raises(ValueError, match="layers maps no layer; name some"):
        TeacherSource.model_validate({"cache": "c", "layers": {}})
    with pytest.raises(ValueError, match="hidden and precision are options of live teachers"):
        TeacherSource.model_validate({"cache": "c", "precision": "bf16"})
    with pytest.raises(ValueError, match="needs no cache"):
        TeacherSource.model_validate({"source": "live", "model": "m", "cache": "c"})
    with pytest.raises(ValueError, match="a live teacher's logits have no rank, but rank is 4"):
        TeacherSource.model_validate({"source": "live", "model": "m", "rank": 4})


def test_a_student_reads_fewer_tokens_than_its_cache_holds(
    cache_directory: Path, corpus: Corpus, settings_of_run: SettingsOfRun
) -> None:
    settings = settings_of_run(teachers={"t": {"cache": cache_directory, "k": 3}}, objective={"logit": 0.5})
    kept = batch_of(open_teachers(settings, corpus, CPU), settings, corpus).signals["t"].at(1.0)
    assert kept.log_kept.shape[-1] == 3
    settings = settings_of_run(teachers={"t": {"cache": cache_directory, "k": 99}}, objective={"logit": 0.5})
    with pytest.raises(UserError, match=r"of teacher t holds k \d+, but 99 is to be read; choose \d+ at most"):
        open_teachers(settings, corpus, CPU)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({1: 0, 7: 1}, r"keeps the hidden states 0, 1, 2, but layers maps 7"),
        ({1: 3}, r"maps 1 to 3, but the student has the hidden states 0 to 2"),
    ],
)
def test_layers_that_one_side_does_not_have_are_refused(
    hidden_capture: CaptureSettings,
    corpus: Corpus,
    settings_of_run: SettingsOfRun,
    layers: dict[int, int],
    message: str,
) -> None:
    capture(hidden_capture)
    source = {"cache": hidden_capture.output, "layers": layers}
    with pytest.raises(UserError, match=message):
        open_teachers(settings_of_run(teachers={"t": source}, objective={"hidden": 1.0}), corpus, CPU)


def test_a_cache_without_hidden_states_is_refused_for_a_hidden_term(
    cache_directory: Path, corpus: Corpus, settings_of_run: SettingsOfRun
) -> None:
    settings = settings_of_run(teachers={"t": {"cache": cache_directory}}, objective={"hidden": 0.1})
    with pytest.raises(UserError, match=r"teacher t holds no hidden states, but objective.hidden is 0.1"):
        open_teachers(settings, corpus, CPU)


@pytest.mark.parametrize("components", [None, 16])
def test_without_a_projection_it_is_the_mean_squared_difference_of_the_states_themselves(
    capture_settings: CaptureSettings,
    corpus: Corpus,
    teacher: Path,
    make_shape: Callable[..., ModelShape],
    settings_of_run: SettingsOfRun,
    components: int | None,
    changed: Changed,
    states_of: StatesOf,
) -> None:
    hidden = {"positions": 5, "sample_windows": 40, "values": "float32", "components": components}
    capture(changed(capture_settings, hidden=hidden, fraction=0.2))
    settings = settings_of_run(
        model=make_shape("gpt2", num_hidden_layers=3),
        fraction=0.2,
        teachers={"t": {"cache": capture_settings.output, "layers": {1: 2, 2: 3}}},
        objective={"hard": 0.0, "hidden": {"weight": 1.0, "distance": "mse", "projection": "none"}},
    )
    opened = open_teachers(settings, corpus, CPU)
    student: Any = settings.model.build(corpus, seed=4)
    objective = Objective(student, settings.objective, opened.pairs, seed=2)
    assert {name for name, _ in objective.named_parameters()} == {f"student.{n}" for n, _ in student.named_parameters()}
    batch = batch_of(opened, settings, corpus)
    loss, _ = objective(batch, settings.weights())
    loss.backward()
    gradient = student.transformer.wte.weight.grad.clone()
    student.zero_grad()
    _, spoken = states_of(teacher, batch.tokens)
    own = student.double()(input_ids=batch.tokens, output_hidden_states=True).hidden_states
    rows = torch.arange(len(batch.tokens))[:, None]
    errors = [
        F.mse_loss(own[here][rows, batch.positions], spoken[there][rows, batch.positions])
        for there, here in ((1, 2), (2, 3))
    ]
    expected = torch.stack(errors).mean()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    torch.testing.assert_close(gradient.double(), student.transformer.wte.weight.grad, rtol=1e-3, atol=1e-5)


def test_without_a_projection_widths_must_be_equal(
    hidden_capture: CaptureSettings,
    make_shape: Callable[..., ModelShape],
    student_of_cache: SettingsOfRun,
) -> None:
    capture(hidden_capture)
    settings = student_of_cache(
        model=make_shape(hidden_size=24), objective={"hidden": {"weight": 1.0, "projection": "none"}}
    )
    sides = r"the student has the width 24 and teacher t \(teacher/0\) 16; choose linear"
    with pytest.raises(UserError, match=f"objective.hidden.projection is none, but {sides}"):
        train(settings)
    assert not settings.output.exists()
