"""Hidden states: codes against float64 linear algebra, and what a cache holds of a teacher's."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.settings import CaptureSettings
from palenka.data.corpus import Corpus
from palenka.data.signals.cache import TeacherCache
from palenka.data.signals.components import Components, ComponentsFit
from palenka.data.signals.hidden import ComponentsEncoding, Layer
from palenka.data.signals.layers import LayerStacks, finished
from palenka.data.signals.signal import at_positions
from palenka.data.signals.stream import ReadingOrder, read_batch
from palenka.data.windows import WindowRule
from palenka.ground.errors import UserError

Changed = Callable[..., CaptureSettings]
StatesOf = Callable[[Path, Tensor], tuple[Tensor, tuple[Tensor, ...]]]


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
    assert ComponentsEncoding(num_layers=num_layers).layers_of(depth) == layers


def test_seven_eighths_of_the_positions_and_no_more_components_than_there_are() -> None:
    assert ComponentsEncoding().within(128).num_positions() == 112
    assert ComponentsEncoding().within(2).num_positions() == 1
    assert ComponentsEncoding(positions=3).within(16).num_positions() == 3
    assert [ComponentsEncoding().array(width, 1).width for width in (16, 64, 1536)] == [16, 64, 80]
    assert ComponentsEncoding(values="float32").array(1536, 1).width == 64
    assert ComponentsEncoding(components=None).array(1536, 1).width == 1536


def test_a_layer_named_twice_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"layers is \[0, 3, 0\], but it should name each layer once"):
        ComponentsEncoding(layers=(0, 3, 0))
    with pytest.raises(ValidationError, match="should name each layer once"):
        ComponentsEncoding(layers=())


def test_as_many_components_as_65536_and_no_more() -> None:
    assert ComponentsEncoding(components=2**16).components == 2**16
    with pytest.raises(ValidationError, match="less than or equal to 65536"):
        ComponentsEncoding(components=2**16 + 1)


def sample(seed: int, count: int = 4000, width: int = 12) -> Tensor:
    """Correlated states far from 0, with deviations from 0.01 to 100."""
    generator = torch.Generator().manual_seed(seed)
    deviations = torch.logspace(-2, 2, width)[:, None]
    mixing: Tensor = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q * deviations
    return torch.randn(count, width, generator=generator) @ mixing + 50 * torch.randn(width, generator=generator)


def fitted(states: Tensor, **settings: Any) -> Components:
    fit = ComponentsFit(ComponentsEncoding(**settings))
    for part in states.split(700):
        fit.add(part.unsqueeze(0))
    return fit.finish()


def test_variances_and_basis_are_those_of_a_dense_decomposition() -> None:
    states = sample(0)
    centred = states.double() - states.double().mean(0)
    plain = fitted(states, components=None)
    torch.testing.assert_close(plain.mean, states.double().mean(0).float())
    torch.testing.assert_close(plain.variance, centred.square().mean(0).float(), rtol=1e-5, atol=1e-6)
    reduced = fitted(states, components=4, values="float32")
    assert reduced.basis is not None
    _, singular, rows = torch.linalg.svd(centred, full_matrices=False)
    torch.testing.assert_close(reduced.variance, (singular[:4] ** 2 / len(states)).float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close((reduced.basis.double() @ rows[:4].T).abs(), torch.eye(4).double(), rtol=0, atol=1e-3)


def test_coordinates_of_its_own_lose_next_to_nothing_each() -> None:
    states = sample(1)
    layer = fitted(states, components=None)
    codes = layer.encode(states)
    assert codes.dtype == torch.int8
    residual, total = layer.squared_error(states, codes)
    centred = states.double() - states.double().mean(0)
    assert total == pytest.approx(centred.square().sum().item(), rel=1e-4)
    assert residual / total < 1e-3
    # Decoded components are in units of the layer's RMS deviation, written out.
    decoded = layer.decode(codes) * layer.variance.double().mean().sqrt()
    assert ((centred - decoded).square().mean(0) / centred.square().mean(0)).max() < 1e-3


def flat_spectrum(seed: int, count: int = 4000, width: int = 24) -> Tensor:
    """Correlated states whose components' deviations fall from 3 to 1, far from 0."""
    generator = torch.Generator().manual_seed(seed)
    mixing: Tensor = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    return torch.randn(count, width, generator=generator) * torch.linspace(3, 1, width) @ mixing + 5


def part_lost(layer: Layer, states: Tensor) -> float:
    """The mean over tokens of the part of its square about the mean that codes lose, in float64, written out."""
    centred = states.double() - layer.mean.double()
    decoded = layer.decode(layer.encode(states)).double() * layer.statics()["variance"].double().mean().sqrt()
    assert layer.basis is not None
    lost = (centred - decoded @ layer.basis.double()).square().sum(-1)
    return float((lost / centred.square().sum(-1)).mean())


@pytest.mark.parametrize("components", [4, 8, 12, 16])
def test_coarse_codes_lose_what_so_many_exact_components_would(components: int) -> None:
    states, others = flat_spectrum(2).split(2000)
    found = {values: fitted(states, components=components, values=values) for values in ("float32", "int8")}
    exact, coarse = (part_lost(layer, others) for layer in found.values())
    assert coarse == pytest.approx(exact, rel=0.03)
    # One step for all components of a layer.
    assert len(found["int8"].scale.unique()) == 1
    assert found["int8"].num_components == -(-components * 5 // 4)


def test_codes_lose_the_part_that_is_allowed_where_exact_components_would_lose_less() -> None:
    states = flat_spectrum(3)
    for error in (0.01, 0.1):
        assert part_lost(fitted(states, components=24, error=error), states) == pytest.approx(error, rel=0.03)


def test_a_few_huge_states_leave_all_others_as_exact_as_without_them() -> None:
    states = flat_spectrum(4)
    huge = states.clone()
    huge[::1000] += 80 * torch.randn(24, generator=torch.Generator().manual_seed(0)).sign()
    ordinary = torch.ones(len(states), dtype=torch.bool)
    ordinary[::1000] = False
    layer = fitted(huge, components=12)
    assert layer.variance[0] > 10 * layer.variance[1]
    # One of the components is spent on the huge ones.
    more, fewer = (part_lost(fitted(states, components=count), states) for count in (12, 11))
    assert 0.97 * more < part_lost(layer, huge[ordinary]) < 1.03 * fewer
    residual, total = layer.squared_error(huge[~ordinary], layer.encode(huge[~ordinary]))
    assert residual / total < 1e-3


def test_embeddings_lie_in_rows_and_layers_in_columns() -> None:
    assert [ComponentsEncoding().array(576, layer).by_column for layer in (0, 1, 30)] == [False, True, True]


def test_a_component_that_never_varies_is_zero() -> None:
    states = torch.cat([torch.full((100, 1), 7.0), torch.randn(100, 1)], dim=1)
    layer = fitted(states, components=None)
    assert layer.encode(states)[:, 0].abs().max() == 0
    assert layer.decode(layer.encode(states))[:, 0].abs().max() == 0


@pytest.mark.parametrize("components", [5, None])
def test_exact_values_are_in_the_teachers_unit(components: int | None) -> None:
    assert bool((fitted(sample(2), components=components, values="float32").scale == 1).all())


@pytest.mark.parametrize("settings", [{}, {"components": 5}, {"components": None, "values": "float32"}])
def test_a_layer_is_what_its_statics_say(settings: dict[str, Any]) -> None:
    states = sample(2)
    layer = fitted(states, **settings)
    again = ComponentsEncoding(**settings).layer(layer.statics())
    assert again.num_components == layer.num_components
    assert torch.equal(again.rms_deviation, layer.rms_deviation)
    assert torch.equal(again.decode(again.encode(states)), layer.decode(layer.encode(states)))


@pytest.mark.parametrize("settings", [{}, {"components": 5}, {"components": None, "values": "float32"}])
def test_layers_at_once_are_each_by_itself(settings: dict[str, Any]) -> None:
    # Two of one width between two of another, as in an ensemble.
    widths = (24, 9, 24, 9)
    states = {f"m/{number}": flat_spectrum(number, 600, width) for number, width in enumerate(widths)}
    layers = {key: fitted(some, **settings) for key, some in states.items()}
    stacks, seen = LayerStacks.of(layers), {key: some.view(6, 100, -1) for key, some in states.items()}
    assert len(stacks.stacks) == 2
    codes = stacks.encode(seen)
    decoded, errors = stacks.decode(codes), stacks.squared_errors(seen, codes)
    assert list(codes) == list(decoded) == list(errors) == list(layers)
    for key, layer in layers.items():
        alone = layer.encode(seen[key])
        # A product of a batch may round a number to the next step.
        assert codes[key].dtype == alone.dtype
        assert float((codes[key].float() - alone.float()).abs().max()) <= (1 if alone.dtype == torch.int8 else 1e-3)
        assert float((codes[key] != alone).float().mean()) < (0.01 if alone.dtype == torch.int8 else 1.1)
        torch.testing.assert_close(decoded[key], layer.decode(codes[key]))
        torch.testing.assert_close(errors[key], layer.squared_error(states[key], codes[key].flatten(0, 1)))


def blocks(seed: int, depth: int = 3, count: int = 4000, width: int = 24) -> dict[str, Tensor]:
    """States of a model's layers by key, each the one before plus less: a linear map of it, and noise."""
    generator = torch.Generator().manual_seed(99)
    maps = 0.05 * torch.randn(depth - 1, width, width, generator=generator)
    generator.manual_seed(seed)
    layers = [torch.randn(count, width, generator=generator) * torch.linspace(3, 1, width) + 5]
    for added in maps:
        noise = 0.3 * torch.randn(count, width, generator=generator)
        layers.append(layers[-1] + layers[-1] @ added + noise)
    return {f"m/{number}": states for number, states in enumerate(layers)}


def measured(states: Mapping[str, Tensor], **settings: Any) -> dict[str, Layer]:
    fits = {key: ComponentsFit(ComponentsEncoding(**settings)) for key in states}
    for key, some in states.items():
        fits[key].add(some.unsqueeze(0))
    return finished(fits)


def entropy(codes: Tensor) -> float:
    """Bits per state of codes [m, C], each component by itself."""
    columns = [column.unique(return_counts=True)[1].double() / len(column) for column in codes.unbind(-1)]
    return float(sum(-(share * share.log2()).sum() for share in columns))


def test_what_the_layer_before_predicts_is_not_stored() -> None:
    states = blocks(0)
    unseen = {key: some.unsqueeze(0) for key, some in blocks(7).items()}
    layers = measured(states, components=16)
    stacks = LayerStacks.of(layers)
    codes = stacks.encode(unseen)
    decoded = stacks.decode(codes)
    for number, (key, layer) in enumerate(layers.items()):
        alone = fitted(states[key], components=16)
        # As exact as codes that nothing predicts, and shorter.
        centred = unseen[key][0].double() - layer.mean.double()
        unit = layer.statics()["variance"].double().mean().sqrt()
        assert layer.basis is not None
        lost = (centred - decoded[key][0].double() * unit @ layer.basis.double()).square().sum(-1)
        part = float((lost / centred.square().sum(-1)).mean())
        assert part == pytest.approx(part_lost(alone, unseen[key][0]), rel=0.05)
        saved = entropy(alone.encode(unseen[key][0])) - entropy(codes[key][0])
        assert (saved > 20) if number else (abs(saved) < 1)


@pytest.mark.parametrize("unit", [2.0**-10, 2.0**10])
def test_codes_do_not_depend_on_the_unit_of_the_states(unit: float) -> None:
    states, unseen = blocks(5), {key: some.unsqueeze(0) for key, some in blocks(6).items()}
    codes = LayerStacks.of(measured(states, components=16)).encode(unseen)
    scaled = measured({key: some * unit for key, some in states.items()}, components=16)
    for key, found in LayerStacks.of(scaled).encode({key: some * unit for key, some in unseen.items()}).items():
        assert torch.equal(found, codes[key])


def test_decoding_is_what_the_statics_say_in_float64() -> None:
    layers = measured(blocks(1), components=16)
    stacks = LayerStacks.of(layers)
    seen = {key: some[:50].unsqueeze(0) for key, some in blocks(2).items()}
    codes = stacks.encode(seen)
    decoded, before = stacks.decode(codes), torch.zeros(50, 20, dtype=torch.float64)
    for key, layer in layers.items():
        said = {name: value.double() for name, value in layer.statics().items()}
        code = codes[key][0].double()
        # Steps are twice as wide at 24.
        left = code.sign() * torch.expm1(code.abs() / 24) * 24 * said["scale"] @ said["directions"]
        before = before @ said["prediction"].T + left
        torch.testing.assert_close(
            decoded[key][0].double(), before / said["variance"].mean().sqrt(), rtol=1e-5, atol=1e-5
        )
        # Closed loop: what is lost of a component is rounded off it in its own layer.
        exact = (seen[key][0].double() - said["mean"]) @ said["basis"].T
        steps = ((exact - before) @ said["directions"].T / said["scale"]).abs()
        assert bool((steps <= 0.51 * torch.exp((code.abs() + 0.5) / 24)).all())


def test_layers_are_decoded_without_those_after_them_and_without_another_model() -> None:
    states = blocks(3) | {f"n/{number}": some for number, some in enumerate(blocks(4).values())}
    seen = {key: some[:40].view(2, 20, -1) for key, some in states.items()}
    layers = measured(states, components=8)
    codes = LayerStacks.of(layers).encode(seen)
    whole = LayerStacks.of(layers).decode(codes)
    for wanted in (("m/0", "m/1"), ("n/0",), ("m/0", "n/0", "n/1", "n/2")):
        few = LayerStacks.of({key: layers[key] for key in wanted}).decode({key: codes[key] for key in wanted})
        for key in wanted:
            torch.testing.assert_close(few[key], whole[key])


def test_layers_by_themselves_need_no_others() -> None:
    states = blocks(8)
    layers = measured(states, components=16, predicted=False)
    assert all("prediction" not in layer.statics() for layer in layers.values())
    seen = {"m/2": states["m/2"][:40].unsqueeze(0)}
    codes = LayerStacks.of({"m/2": layers["m/2"]}).encode(seen)["m/2"]
    assert torch.equal(codes[0], fitted(states["m/2"], components=16, predicted=False).encode(seen["m/2"][0]))
    assert not ComponentsEncoding(predicted=False).needs_before
    assert not ComponentsEncoding(values="float32").needs_before
    assert ComponentsEncoding().needs_before


def test_a_sample_with_fewer_tokens_than_components_still_decodes_to_what_was_encoded() -> None:
    stacks = LayerStacks.of(measured(blocks(5, count=12)))
    seen = {key: some[:200].unsqueeze(0) for key, some in blocks(6).items()}
    ((_, layer),) = stacks.stacks
    exact = (torch.cat(list(seen.values())) - layer.mean) @ layer.statics()["basis"].mT
    decoded = layer.components(torch.cat(list(stacks.encode(seen).values())))
    assert float((exact - decoded).norm() / exact.norm()) < 0.25


def in_own_units(layer: Layer, components: Tensor) -> Tensor:
    """Decoded components as states [B, P, W] of the teacher, float64; the unit as its definition has it."""
    unit = layer.statics()["variance"].double().mean().sqrt()
    return layer.mean.double() + components.double() * unit


def test_a_cache_holds_the_states_of_the_teacher_at_the_positions(
    hidden_capture: CaptureSettings, corpus: Corpus, teacher: Path, changed: Changed, states_of: StatesOf
) -> None:
    settings = changed(hidden_capture, windows={"length": 16, "views": 2}, fraction=0.3)
    capture(settings)
    cache = TeacherCache(settings.output, ["teacher/0", "teacher/2"])
    order = ReadingOrder(settings.windows, len(corpus.tokens), seed=1, epochs=2, fraction=0.3)
    middle = len(order) // 2
    encoded = read_batch(corpus, order, {"t": cache}, middle - 20, middle + 20, num_positions=5)  # in both views
    batch = encoded.decode({"t": cache})
    _, states = states_of(teacher, batch.tokens)
    assert batch.signals["t"].hidden.keys() == {"teacher/0", "teacher/2"}
    for key, components in batch.signals["t"].hidden.items():
        expected = at_positions(states[int(key.split("/")[1])], batch.positions)
        decoded = in_own_units(cache.measured.layers[key], components)
        error = (decoded - expected).square().sum() / (expected - cache.measured.layers[key].mean).square().sum()
        assert error < 2e-3
    errors = cache.hidden_errors()
    assert errors.keys() == {"teacher/0", "teacher/1", "teacher/2"}
    assert all(0 < error < 2e-3 for error in errors.values())
    assert set(cache.bytes_per_token()) >= {f"hidden/teacher/{layer}/codes" for layer in range(3)}


def test_measures_leave_position_0_out(
    hidden_capture: CaptureSettings, corpus: Corpus, teacher: Path, states_of: StatesOf
) -> None:
    capture(hidden_capture)
    rule = hidden_capture.windows
    tokens = np.stack([corpus.tokens[slice(*rule.span(0, i))] for i in rule.slots(len(corpus.tokens), 0)[:40]])
    _, states = states_of(teacher, torch.from_numpy(tokens.astype(np.int64)))
    layer = TeacherCache(hidden_capture.output, ["teacher/1"]).measured.layers["teacher/1"]
    torch.testing.assert_close(layer.mean.double(), states[1][:, 1:].flatten(0, 1).mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("hidden", "message"),
    [
        ({"positions": 16}, "hidden.positions is 16, but windows of 16 tokens have only 15 beside position 0"),
        ({"positions": 20}, "hidden.positions is 20, but windows of 16 tokens have only 15 beside position 0"),
        ({"layers": [0, 3]}, "hidden.layers has 3, but the teacher has the hidden states 0 to 2"),
    ],
)
def test_hidden_states_that_do_not_exist_are_refused(
    capture_settings: CaptureSettings, hidden: dict[str, object], message: str, changed: Changed
) -> None:
    with pytest.raises(UserError, match=message):
        capture(changed(capture_settings, hidden=hidden))
    assert not capture_settings.output.exists()


def test_a_resumed_capture_has_the_bytes_of_an_undisturbed_one(
    hidden_capture: CaptureSettings, changed: Changed
) -> None:
    settings = changed(hidden_capture, hidden={"positions": 3, "components": 4})
    capture(settings)

    def contents() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in settings.output.rglob("*") if path.is_file()}

    whole = contents()
    next(settings.output.glob("hidden/teacher/1/codes/c/0/1/0/0")).write_bytes(b"\0" * 10)
    capture(settings)
    assert contents() == whole


def test_damaged_coordinates_are_refused(hidden_capture: CaptureSettings) -> None:
    capture(hidden_capture)
    path = hidden_capture.output / "hidden" / "teacher" / "1" / "mean" / "c" / "0"
    path.write_bytes(bytes(reversed(path.read_bytes())))
    with pytest.raises(UserError, match=r"is damaged: hidden/teacher/1/mean/c/0 differs from its checksum"):
        TeacherCache(hidden_capture.output)


def test_an_ensemble_is_the_geometric_mean_of_its_models_each_with_its_own_states(
    hidden_capture: CaptureSettings,
    corpus: Corpus,
    make_teacher: Callable[..., Path],
    changed: Changed,
    states_of: StatesOf,
) -> None:
    ensemble = {"a": make_teacher("llama", seed=1), "b": make_teacher("gpt2", seed=2, hidden_size=24)}
    vocabulary = corpus.vocabulary_size
    settings = changed(
        hidden_capture, teacher=None, ensemble=ensemble, logits={"k": vocabulary, "values": "float32"}, fraction=0.1
    )
    capture(settings)
    cache = TeacherCache(settings.output, ["a/2", "b/1"])
    rule = settings.windows
    slots: NDArray[np.int64] = np.arange(30)
    signal = cache.read(0, slots)
    indices = rule.slots(len(corpus.tokens), 0)[slots]
    tokens = torch.from_numpy(np.stack([corpus.tokens[slice(*rule.span(0, i))] for i in indices]).astype(np.int64))
    spoken = {name: states_of(directory, tokens) for name, directory in ensemble.items()}
    probabilities = [logits.softmax(-1) for logits, _ in spoken.values()]
    mean = (probabilities[0] * probabilities[1]).sqrt()
    torch.testing.assert_close(
        signal.at(1.0).log_kept.exp().double(), mean / mean.sum(-1, keepdim=True), rtol=0, atol=1e-5
    )
    positions = torch.from_numpy(rule.positions(0, indices, 5))
    for key, (name, number) in {"a/2": ("a", 2), "b/1": ("b", 1)}.items():
        expected = at_positions(spoken[name][1][number], positions)
        layer = cache.measured.layers[key]
        decoded = in_own_units(layer, signal.hidden[key])
        largest = float(layer.statics()["variance"].max().sqrt())
        torch.testing.assert_close(decoded, expected, rtol=0.1, atol=0.1 * largest)


def test_coordinates_do_not_depend_on_how_the_sample_is_cut() -> None:
    states, whole = flat_spectrum(4)[: 4 * 300], ComponentsFit(ComponentsEncoding(components=8))
    parts = ComponentsFit(ComponentsEncoding(components=8))
    whole.add(states.reshape(4, 300, -1))
    for part in states.split(177):  # no multiple of what is held
        parts.add(part.unsqueeze(0))
    torch.testing.assert_close(whole.finish().scale, parts.finish().scale, rtol=1e-6, atol=0)
