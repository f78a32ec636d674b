"""Hidden states: codes against float64 linear algebra, the hidden term against its definition, from caches and live."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM

from palenka.cache_teachers.capture import CaptureSettings, capture
from palenka.data.corpus import Corpus
from palenka.data.signals.cache import TeacherCache
from palenka.data.signals.hidden import HiddenEncoding, LayerStatistics, StatisticsFit, at_positions
from palenka.data.signals.stream import Batch, ReadingOrder, read_batch
from palenka.data.windows import WindowRule
from palenka.ground.errors import UserError
from palenka.train_student.model.shapes import ModelShape
from palenka.train_student.objective.hidden import LayerPair, Projection
from palenka.train_student.objective.objective import Objective, ObjectiveSettings
from palenka.train_student.settings import TrainSettings
from palenka.train_student.teachers import TeacherSource, open_teachers
from palenka.train_student.train import train

LENGTH = 16
CPU = torch.device("cpu")


def changed(settings: CaptureSettings, **changes: object) -> CaptureSettings:
    return CaptureSettings.model_validate(settings.as_plain() | changes)


def states_of(directory: Path, tokens: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Logits and all hidden states in float64, from transformers alone."""
    model: Any = AutoModelForCausalLM.from_pretrained(directory).double()
    with torch.no_grad():
        output = model(input_ids=tokens, output_hidden_states=True)
    return output.logits, output.hidden_states


@given(st.integers(2, 40), st.integers(0, 5), st.integers(0, 2**31), st.data())
def test_positions_differ_are_nested_and_follow_from_the_address_alone(
    length: int, view: int, seed: int, data: st.DataObject
) -> None:
    rule = WindowRule(length=length, permutation_seed=seed)
    indices = np.array(data.draw(st.lists(st.integers(0, 10**9), min_size=1, max_size=5)), np.int64)
    count = data.draw(st.integers(0, length - 1))
    some = rule.positions(view, indices, count)
    assert some.shape == (len(indices), count)
    every = rule.positions(view, indices, length - 1)
    assert np.array_equal(every[:, :count], some)
    assert all(sorted(row) == list(range(1, length)) for row in every)
    for index, row in zip(indices, some, strict=True):
        assert np.array_equal(rule.positions(view, np.array([index]), count)[0], row)


def test_positions_are_spread_evenly() -> None:
    rule = WindowRule(length=128)
    positions = rule.positions(0, np.arange(20_000), 4)
    counts = np.bincount(positions.flatten(), minlength=128)
    assert counts[0] == 0
    expected = 80_000 / 127
    assert ((counts[1:] - expected) ** 2 / expected).sum() < 127 + 6 * math.sqrt(2 * 127)
    assert not np.array_equal(positions, rule.positions(1, np.arange(20_000), 4))


@pytest.mark.parametrize(
    ("depth", "num_layers", "layers"),
    [(24, 9, (0, 3, 6, 9, 12, 15, 18, 21, 24)), (2, 9, (0, 1, 2)), (4, 2, (0, 4)), (7, 3, (0, 4, 7))],
)
def test_uniform_layers(depth: int, num_layers: int, layers: tuple[int, ...]) -> None:
    assert HiddenEncoding(num_layers=num_layers).layers_of(depth) == layers


def test_seven_eighths_of_the_positions_and_no_more_components_than_there_are() -> None:
    assert HiddenEncoding().within(128).num_positions() == 112
    assert HiddenEncoding().within(2).num_positions() == 1
    assert HiddenEncoding(positions=3).within(16).num_positions() == 3
    assert [HiddenEncoding().num_components(width) for width in (16, 64, 1536)] == [16, 64, 64]
    assert HiddenEncoding(components=None).num_components(1536) == 1536


def sample(seed: int, count: int = 4000, width: int = 12) -> Tensor:
    """Correlated states far from 0, with deviations from 0.01 to 100."""
    generator = torch.Generator().manual_seed(seed)
    deviations = torch.logspace(-2, 2, width)[:, None]
    mixing: Tensor = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q * deviations
    return torch.randn(count, width, generator=generator) @ mixing + 50 * torch.randn(width, generator=generator)


def fitted(states: Tensor, encoding: HiddenEncoding) -> LayerStatistics:
    fit = StatisticsFit(encoding)
    for part in states.split(700):
        fit.add(part.unsqueeze(0))
    return fit.finish()


def test_statistics_and_basis_are_those_of_a_dense_decomposition() -> None:
    states = sample(0)
    centred = states.double() - states.double().mean(0)
    plain = fitted(states, HiddenEncoding(components=None))
    torch.testing.assert_close(plain.mean, states.double().mean(0).float())
    torch.testing.assert_close(plain.variance, centred.square().mean(0).float(), rtol=1e-5, atol=1e-6)
    reduced = fitted(states, HiddenEncoding(components=4))
    assert reduced.basis is not None
    _, singular, rows = torch.linalg.svd(centred, full_matrices=False)
    torch.testing.assert_close(reduced.variance, (singular[:4] ** 2 / len(states)).float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close((reduced.basis.double() @ rows[:4].T).abs(), torch.eye(4).double(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("components", [None, 12, 5, 1])
def test_codes_lose_next_to_nothing_but_what_lies_outside_the_basis(components: int | None) -> None:
    states = sample(1)
    encoding = HiddenEncoding(components=components)
    statistics = fitted(states, encoding)
    codes = statistics.encode(states, encoding)
    assert codes.dtype == torch.int8
    missed, total = statistics.squared_error(states, codes)
    centred = states.double() - states.double().mean(0)
    assert total == pytest.approx(centred.square().sum().item(), rel=1e-4)
    spectrum = torch.linalg.svdvals(centred).square()
    outside = float(spectrum[components or 12 :].sum() / spectrum.sum())
    assert missed / total == pytest.approx(outside, abs=1e-3)
    # Every component by itself, small ones too: that is what a scale per component is for.
    basis = torch.eye(12) if statistics.basis is None else statistics.basis
    exact = (states - statistics.mean) @ basis.T
    decoded = codes.float() * statistics.scale
    assert ((exact - decoded).square().mean(0) / exact.square().mean(0)).max() < 1e-3


def test_a_component_that_never_varies_is_zero() -> None:
    states = torch.cat([torch.full((100, 1), 7.0), torch.randn(100, 1)], dim=1)
    encoding = HiddenEncoding(components=None)
    assert fitted(states, encoding).encode(states, encoding)[:, 0].abs().max() == 0


@pytest.mark.parametrize("distance", ["r2", "mse", "cosine"])
def test_distances_are_their_definitions(distance: Any) -> None:
    encoding = HiddenEncoding(values="float32", components=None)
    states, student = sample(2, 60), torch.randn(60, 6)
    statistics = fitted(states, encoding)
    projection: Any = Projection(6, LayerPair("t/0", 0, statistics), distance)
    found = projection(student.view(4, 15, 6), statistics.encode(states, encoding).view(4, 15, 12)).item()
    # In the teacher's own units, with the mean deviation written out.
    unit = statistics.variance.double().mean().sqrt()
    with torch.no_grad():
        predicted = unit * projection.linear(student).double()
    centred = states.double() - states.double().mean(0)
    if distance == "cosine":
        cosines = (predicted * centred).sum(-1) / (predicted.norm(dim=-1) * centred.norm(dim=-1))
        expected = 1 - cosines.mean()
    else:
        errors = (predicted - centred).square()
        expected = errors.sum() / centred.square().sum() if distance == "r2" else errors.mean()
    assert found == pytest.approx(expected.item(), rel=1e-4)


@pytest.fixture
def hidden_capture(capture_settings: CaptureSettings) -> CaptureSettings:
    """Hidden states of every layer at five positions, beside the logits."""
    return changed(capture_settings, hidden={"positions": 5, "components": None, "sample_windows": 40})


def test_a_cache_holds_the_states_of_the_teacher_at_the_positions(
    hidden_capture: CaptureSettings, corpus: Corpus, teacher: Path
) -> None:
    settings = changed(hidden_capture, windows={"length": LENGTH, "views": 2}, fraction=0.3)
    capture(settings)
    cache = TeacherCache(settings.output)
    statistics = cache.read_statistics(["teacher/0", "teacher/2"])
    order = ReadingOrder(settings.windows, len(corpus.tokens), seed=1, epochs=2, fraction=0.3)
    middle = len(order) // 2
    coded = read_batch(corpus, order, {"t": cache}, middle - 20, middle + 20, num_positions=5)  # in both views
    batch = coded.decode({"t": cache})
    _, states = states_of(teacher, batch.tokens)
    assert batch.signals["t"].hidden.keys() == {"teacher/0", "teacher/2"}
    for key, codes in batch.signals["t"].hidden.items():
        expected = at_positions(states[int(key.split("/")[1])], batch.positions)
        decoded = statistics[key].mean + codes.double() * statistics[key].scale
        missed = (decoded - expected).square().sum() / (expected - statistics[key].mean).square().sum()
        assert missed < 2e-3
    errors = cache.hidden_errors()
    assert errors.keys() == {"teacher/0", "teacher/1", "teacher/2"}
    assert all(0 < error < 2e-3 for error in errors.values())
    assert set(cache.bytes_per_token()) >= {f"hidden/teacher/{layer}/codes" for layer in range(3)}


def test_statistics_leave_position_0_out(hidden_capture: CaptureSettings, corpus: Corpus, teacher: Path) -> None:
    capture(hidden_capture)
    rule = hidden_capture.windows
    tokens = np.stack([corpus.tokens[slice(*rule.span(0, i))] for i in rule.slots(len(corpus.tokens), 0)[:40]])
    _, states = states_of(teacher, torch.from_numpy(tokens.astype(np.int64)))
    statistics = TeacherCache(hidden_capture.output).read_statistics(["teacher/1"])["teacher/1"]
    torch.testing.assert_close(statistics.mean.double(), states[1][:, 1:].flatten(0, 1).mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("hidden", "message"),
    [
        ({"positions": 16}, "hidden.positions is 16, but windows of 16 tokens have only 15 beside position 0"),
        ({"layers": [0, 3]}, "hidden.layers has 3, but the teacher has the hidden states 0 to 2"),
    ],
)
def test_hidden_states_that_do_not_exist_are_refused(
    capture_settings: CaptureSettings, hidden: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        capture(changed(capture_settings, hidden=hidden))
    assert not capture_settings.output.exists()


def test_a_resumed_capture_has_the_bytes_of_an_undisturbed_one(hidden_capture: CaptureSettings) -> None:
    settings = changed(hidden_capture, hidden={"positions": 3, "components": 4})
    capture(settings)

    def contents() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in settings.output.rglob("*") if path.is_file()}

    whole = contents()
    next(settings.output.glob("hidden/teacher/1/codes/c/0/1/0/0")).write_bytes(b"\0" * 10)
    capture(settings)
    assert contents() == whole


def test_damaged_statistics_are_refused(hidden_capture: CaptureSettings) -> None:
    capture(hidden_capture)
    path = hidden_capture.output / "hidden" / "teacher" / "1" / "mean" / "c" / "0"
    path.write_bytes(bytes(reversed(path.read_bytes())))
    with pytest.raises(UserError, match=r"is damaged: hidden/teacher/1/mean/c/0 differs from its checksum"):
        TeacherCache(hidden_capture.output)


def batch_of(teachers: Any, corpus: Corpus, rule: WindowRule) -> Batch:
    order = ReadingOrder(rule, len(corpus.tokens), seed=3, epochs=1)
    batch = read_batch(corpus, order, teachers.caches, 5, 25, teachers.num_positions)
    complete: Batch = teachers.complete(batch)
    return complete


def test_a_live_teacher_and_a_float32_cache_of_all_positions_give_the_same_loss_and_gradients(
    capture_settings: CaptureSettings, corpus: Corpus, teacher: Path, make_shape: Callable[..., ModelShape]
) -> None:
    everything = {"positions": LENGTH - 1, "values": "float32", "sample_windows": 50, "components": None}
    logits = {"k": corpus.vocabulary_size, "values": "float32"}
    settings = changed(capture_settings, hidden=everything, logits=logits)
    capture(settings)
    terms = ObjectiveSettings(hard=0.5, logit=0.7, hidden=0.3)
    losses, gradients = [], []
    for source in ({"cache": settings.output}, {"source": "live", "model": teacher, "hidden": everything}):
        sources = {"t": TeacherSource.model_validate(source)}
        opened = open_teachers(sources, terms, corpus, settings.windows, 1.0, 4, CPU)
        student = make_shape("gpt2", num_hidden_layers=4).build(corpus.tokenizer(), seed=9)
        objective = Objective(student, terms, opened.pairs, seed=2)
        loss, parts = objective(batch_of(opened, corpus, settings.windows), terms.weights({"t": 0.8}))
        assert parts.keys() == {"hard", "logit/t", "hidden/t"}
        loss.backward()
        losses.append(loss.item())
        gradients.append({name: weight.grad for name, weight in objective.named_parameters()})
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert len(gradients[0]) > 50
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-6)


def test_the_hidden_term_is_its_definition_in_float64(
    hidden_capture: CaptureSettings, corpus: Corpus, teacher: Path, make_shape: Callable[..., ModelShape]
) -> None:
    capture(hidden_capture)
    terms = ObjectiveSettings(hard=0.0, hidden=0.3)
    source = TeacherSource(cache=hidden_capture.output, layers={0: 1, 2: 3})
    opened = open_teachers({"t": source}, terms, corpus, hidden_capture.windows, 1.0, 3, CPU)
    student = make_shape(hidden_size=24, num_attention_heads=2, num_hidden_layers=3).build(corpus.tokenizer(), seed=4)
    objective = Objective(student, terms, opened.pairs, seed=2)
    batch = batch_of(opened, corpus, hidden_capture.windows)
    loss, parts = objective(batch, terms.weights({"t": 0.5}))
    _, spoken = states_of(teacher, batch.tokens)
    own = student.double()(input_ids=batch.tokens, output_hidden_states=True).hidden_states
    ratios = []
    for number, (there, here) in enumerate(((0, 1), (2, 3))):
        projection: Any = objective.hidden.projections["teacher_t"]
        linear, statistics = projection[number].linear.double(), opened.pairs["t"][number].statistics
        unit = statistics.variance.double().mean().sqrt()
        rows = torch.arange(len(batch.tokens))[:, None]
        predicted = unit * linear(own[here][rows, batch.positions])
        target = spoken[there][rows, batch.positions] - statistics.mean.double()
        ratios.append((predicted - target).square().sum(-1).mean() / statistics.variance.double().sum())
    expected = torch.stack(ratios).mean()
    assert parts["hidden/t"].item() == pytest.approx(expected.item(), rel=2e-3)  # the cache's int8
    assert loss.item() == pytest.approx(0.3 * 0.5 * parts["hidden/t"].item(), rel=1e-6)


def test_the_term_moves_student_and_projections(
    hidden_capture: CaptureSettings, corpus: Corpus, make_shape: Callable[..., ModelShape]
) -> None:
    capture(hidden_capture)
    terms = ObjectiveSettings(hard=0.0, hidden=1.0)
    opened = open_teachers(
        {"t": TeacherSource(cache=hidden_capture.output)}, terms, corpus, hidden_capture.windows, 1.0, 2, CPU
    )
    objective = Objective(make_shape().build(corpus.tokenizer(), seed=4), terms, opened.pairs, seed=2)
    loss, _ = objective(batch_of(opened, corpus, hidden_capture.windows), terms.weights({"t": 1.0}))
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


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({1: 0, 7: 1}, r"keeps the hidden states 0, 1, 2, but layers maps 7"),
        ({1: 3}, r"maps 1 to 3, but the student has the hidden states 0 to 2"),
    ],
)
def test_layers_that_one_side_does_not_have_are_refused(
    hidden_capture: CaptureSettings, corpus: Corpus, layers: dict[int, int], message: str
) -> None:
    capture(hidden_capture)
    source = TeacherSource(cache=hidden_capture.output, layers=layers)
    with pytest.raises(UserError, match=message):
        open_teachers({"t": source}, ObjectiveSettings(hidden=1.0), corpus, hidden_capture.windows, 1.0, 2, CPU)


def test_a_cache_without_hidden_states_is_refused_for_a_hidden_term(cache_directory: Path, corpus: Corpus) -> None:
    with pytest.raises(UserError, match=r"teacher t holds no hidden states, but objective.hidden is 0.1"):
        open_teachers(
            {"t": TeacherSource(cache=cache_directory)},
            ObjectiveSettings(hidden=0.1),
            corpus,
            WindowRule(length=LENGTH),
            1.0,
            2,
            CPU,
        )


def test_an_ensemble_is_the_geometric_mean_of_its_models_each_with_its_own_states(
    hidden_capture: CaptureSettings, corpus: Corpus, make_teacher: Callable[..., Path]
) -> None:
    ensemble = {"a": make_teacher("llama", seed=1), "b": make_teacher("gpt2", seed=2, hidden_size=24)}
    vocabulary = corpus.vocabulary_size
    settings = changed(
        hidden_capture, teacher=None, ensemble=ensemble, logits={"k": vocabulary, "values": "float32"}, fraction=0.1
    )
    capture(settings)
    cache = TeacherCache(settings.output)
    statistics = cache.read_statistics(["a/2", "b/1"])
    rule = settings.windows
    slots: NDArray[np.int64] = np.arange(30)
    signal = cache.read(0, slots)
    indices = rule.slots(len(corpus.tokens), 0)[slots]
    tokens = torch.from_numpy(np.stack([corpus.tokens[slice(*rule.span(0, i))] for i in indices]).astype(np.int64))
    spoken = {name: states_of(directory, tokens) for name, directory in ensemble.items()}
    probabilities = [logits.softmax(-1) for logits, _ in spoken.values()]
    mean = (probabilities[0] * probabilities[1]).sqrt()
    kept, _ = signal.at(1.0)
    torch.testing.assert_close(kept.exp().double(), mean / mean.sum(-1, keepdim=True), rtol=0, atol=1e-5)
    positions = torch.from_numpy(rule.positions(0, indices, 5))
    for key, (name, layer) in {"a/2": ("a", 2), "b/1": ("b", 1)}.items():
        expected = at_positions(spoken[name][1][layer], positions)
        decoded = statistics[key].mean + signal.hidden[key].double() * statistics[key].scale
        torch.testing.assert_close(decoded, expected, rtol=0.1, atol=0.1 * float(statistics[key].variance.max().sqrt()))


@pytest.mark.parametrize("components", [None, 16])
def test_without_a_projection_it_is_the_mean_squared_difference_of_the_states_themselves(
    capture_settings: CaptureSettings,
    corpus: Corpus,
    teacher: Path,
    make_shape: Callable[..., ModelShape],
    components: int | None,
) -> None:
    hidden = {"positions": 5, "sample_windows": 40, "values": "float32", "components": components}
    settings = changed(capture_settings, hidden=hidden, fraction=0.2)
    capture(settings)
    terms = ObjectiveSettings(hard=0.0, hidden=1.0, hidden_distance="mse", projection="none")
    source = TeacherSource(cache=settings.output, layers={1: 2, 2: 3})
    opened = open_teachers({"t": source}, terms, corpus, settings.windows, 0.2, 3, CPU)
    student: Any = make_shape("gpt2", num_hidden_layers=3).build(corpus.tokenizer(), seed=4)
    objective = Objective(student, terms, opened.pairs, seed=2)
    assert {name for name, _ in objective.named_parameters()} == {f"student.{n}" for n, _ in student.named_parameters()}
    order = ReadingOrder(settings.windows, len(corpus.tokens), seed=3, epochs=1, fraction=0.2)
    batch = opened.complete(read_batch(corpus, order, opened.caches, 5, 25, opened.num_positions))
    loss, _ = objective(batch, terms.weights({"t": 1.0}))
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
    hidden_capture: CaptureSettings, make_shape: Callable[..., ModelShape], tmp_path: Path
) -> None:
    capture(hidden_capture)
    settings = TrainSettings.model_validate(
        {
            "corpus": hidden_capture.corpus,
            "output": tmp_path / "run",
            "model": make_shape(hidden_size=24),
            "windows": hidden_capture.windows,
            "teachers": {"t": {"cache": hidden_capture.output}},
            "objective": {"hidden": 1.0, "projection": "none"},
        }
    )
    message = r"projection is none, but the student has the width 24 and teacher t \(teacher/0\) 16; choose linear"
    with pytest.raises(UserError, match=message):
        train(settings)
    assert not settings.output.exists()
