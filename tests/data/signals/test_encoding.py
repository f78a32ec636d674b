"""Logit encodings: what they keep against float64 softmaxes, and draws against the distribution that they are from."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.settings import CaptureSettings
from palenka.data.signals.cache import TeacherCache
from palenka.data.signals.distribution import Distribution
from palenka.data.signals.draws import draw
from palenka.data.signals.encoding import LogitEncoding, TeacherOutputs
from palenka.data.signals.encodings import AnyLogitEncoding, TopKEncoding
from palenka.data.windows import WindowRule

Contents = Callable[[Path], dict[str, bytes]]

VOCABULARY = 300
LogitsOf = Callable[..., Tensor]
OutputsOf = Callable[..., TeacherOutputs]
ENCODING: TypeAdapter[LogitEncoding] = TypeAdapter(AnyLogitEncoding)


def encoding_of(**fields: Any) -> LogitEncoding:
    """As a settings file gives it."""
    return ENCODING.validate_python(fields)


@pytest.fixture(scope="module")
def logits_of(logits_of: LogitsOf) -> LogitsOf:
    """Those over this vocabulary, far from 0."""
    return lambda seed, *shape: logits_of(seed, *shape, VOCABULARY) - 70


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def settings_of(kind: str, k: int, draws: int) -> dict[str, Any]:
    return {"topk": {"k": k}, "sampled": {"draws": draws}, "hybrid": {"k": min(k, 200), "draws": draws}}[kind]


@given(
    st.sampled_from(["topk", "sampled", "hybrid"]),
    st.sampled_from(["float32", "uint8"]),
    st.integers(1, VOCABULARY),
    st.integers(1, 60),
    st.floats(0.5, 4),
)
def test_every_encoding_survives_json_and_decodes_to_a_distribution(
    logits_of: LogitsOf, outputs_of: OutputsOf, kind: str, values: str, k: int, draws: int, temperature: float
) -> None:
    coarse = {} if kind == "sampled" else {"values": values}
    encoding = encoding_of(kind=kind, temperatures=(temperature,), **settings_of(kind, k, draws), **coarse)
    assert ENCODING.validate_json(encoding.model_dump_json()) == encoding
    arrays = encoding.encode(outputs_of(logits_of(k, 2, 3), numbers(draws, 2, 3, draws)), {})
    expected = encoding.arrays(VOCABULARY)
    assert {name: part.shape[-1] for name, part in arrays.items()} == {
        name: stored.width for name, stored in expected.items()
    }
    stored = {name: torch.from_numpy(part.numpy().astype(expected[name].dtype)) for name, part in arrays.items()}
    found = encoding.decode(stored, {}, temperature)
    total = found.log_kept.exp().sum(-1) + found.log_tail.exp()
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-5)
    assert bool((found.log_kept.exp() <= 1).all())


@pytest.mark.parametrize(("kind", "kept"), [("topk", 9), ("sampled", VOCABULARY), ("hybrid", 9)])
def test_the_mass_outside_the_kept_tokens_needs_the_arrays_of_the_tail_alone(
    outputs_of: OutputsOf, kind: str, kept: int, logits_of: LogitsOf
) -> None:
    encoding, logits = encoding_of(kind=kind, **settings_of(kind, 9, 5)), logits_of(3, 2, 3)
    arrays = encoding.encode(outputs_of(logits, numbers(4, 2, 3, 5)), {})
    assert encoding.tail_arrays is not None
    found = encoding.log_tails({name: arrays[name] for name in encoding.tail_arrays}, {})
    assert found.shape == (2, 3, len(encoding.temperatures))
    for number, temperature in enumerate(encoding.temperatures):
        exact = (logits.double() / temperature).softmax(-1).sort(descending=True).values[..., kept:].sum(-1)
        torch.testing.assert_close(found[..., number].exp().double(), exact, rtol=1 / 64, atol=0)


def test_coarse_values_cost_little_and_their_mass_is_right(outputs_of: OutputsOf, logits_of: LogitsOf) -> None:
    logits = logits_of(1, 4, 50)
    encoding = TopKEncoding(k=16, temperatures=(1.0, 2.0))
    arrays = encoding.encode(outputs_of(logits), {})
    for temperature in (1.0, 2.0):
        exact = (logits.double() / temperature).log_softmax(-1)
        found = encoding.decode(arrays, {}, temperature)
        assert found.ids is not None
        kept = exact.gather(-1, found.ids)
        mass = kept.exp().sum(-1)
        torch.testing.assert_close(found.log_kept.double().exp().sum(-1), mass, rtol=0, atol=0.25 / 64 + 1e-6)
        shares = found.log_kept.double().log_softmax(-1)
        divergence = (kept.log_softmax(-1).exp() * (kept.log_softmax(-1) - shares)).sum(-1)
        assert 0 < divergence.mean() < 4e-4


def dense(found: Distribution) -> Tensor:
    """A decoded estimate over the whole vocabulary, float64."""
    assert found.ids is not None
    empty = torch.zeros(*found.log_tail.shape, VOCABULARY, dtype=torch.float64)
    return empty.scatter_add(-1, found.ids, found.log_kept.double().exp())


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(
    "fields", [{"kind": "sampled", "draws": 40}, {"kind": "hybrid", "k": 8, "draws": 20, "values": "float32"}]
)
def test_draws_are_unbiased(
    outputs_of: OutputsOf, fields: dict[str, Any], temperature: float, logits_of: LogitsOf
) -> None:
    encoding = encoding_of(temperatures=(temperature,), **fields)
    logits = logits_of(2, 1, 1).expand(50, 100, -1)
    exact = (logits[0, 0].double() / temperature).softmax(-1)
    arrays = encoding.encode(outputs_of(logits, numbers(3, 50, 100, fields["draws"])), {})
    found = dense(encoding.decode(arrays, {}, temperature)).flatten(0, 1)
    mean, error = found.mean(0), found.std(0) / math.sqrt(5000)
    deviations = (mean - exact).abs() / error.clamp_min(1e-7)
    drawn = exact * 5000 * fields["draws"] > 50
    assert drawn.sum() > 30
    assert deviations[drawn].max() < 5
    if "k" in fields:  # the most probable tokens are not drawn: exact every time
        top = exact.topk(8).indices
        torch.testing.assert_close(found[:, top], exact[top].expand(5000, -1), rtol=1e-4, atol=0)


def test_counts_are_those_of_a_plain_loop_over_the_cumulative_distribution(logits_of: LogitsOf) -> None:
    logits, uniforms = logits_of(4, 3, 5), numbers(5, 3, 5, 30)
    ids, counts = draw(logits, uniforms, 2.0)
    probabilities = (logits.double() / 2).softmax(-1).numpy()
    for place in itertools.product(range(3), range(5)):
        cumulative = np.cumsum(probabilities[place])
        drawn = np.searchsorted(cumulative, uniforms[place].numpy() * cumulative[-1], side="right")
        expected = dict(zip(*np.unique(drawn, return_counts=True), strict=True))
        some = {int(i): int(c) for i, c in zip(ids[place], counts[place], strict=True) if c}
        assert some == expected
        assert bool((ids[place].diff() >= 0).all())


@pytest.mark.parametrize("fields", [{"kind": "sampled", "draws": 12}, {"kind": "hybrid", "k": 6, "draws": 5}])
def test_the_loss_of_draws_is_cross_entropy_against_them(
    losses_of_logits: Callable[..., tuple[Tensor, dict[str, Tensor]]],
    outputs_of: OutputsOf,
    fields: dict[str, Any],
    logits_of: LogitsOf,
) -> None:
    encoding = encoding_of(temperatures=(2.0,), **fields)
    teacher, student = logits_of(6, 2, 7), logits_of(7, 2, 7).requires_grad_()
    found = encoding.decode(encoding.encode(outputs_of(teacher, numbers(8, 2, 7, fields["draws"])), {}), {}, 2.0)
    target = dense(found)
    total, _ = losses_of_logits(student, {"t": found}, {"t": 1.0}, 2.0)
    (gradient,) = torch.autograd.grad(total, student)
    exact = student.detach().double().requires_grad_()
    loss = -4 * (target * (exact / 2).log_softmax(-1)).sum(-1).mean()
    (expected,) = torch.autograd.grad(loss, exact)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-8)
    entropy = -4 * (torch.where(target > 0, target * target.log(), 0.0)).sum(-1).mean()
    assert total.item() == pytest.approx((loss - entropy).item(), rel=1e-4)


def test_the_draws_of_a_window_follow_from_its_address() -> None:
    rule = WindowRule(length=16, views=2)
    indices = np.array([5, 9, 2], np.int64)
    some = rule.uniforms(0, indices, 7, 3)
    assert some.shape == (3, 16, 7)
    assert np.array_equal(rule.uniforms(0, indices[1:], 7, 3), some[1:])
    assert not np.array_equal(rule.uniforms(1, indices, 7, 3), some)
    # Two teachers draw numbers of their own.
    assert not np.isin(rule.uniforms(0, indices, 7, 4), some).any()
    many = rule.uniforms(0, np.arange(2000), 7, 3).flatten()
    assert 0 <= many.min() <= many.max() < 1
    assert np.abs(np.histogram(many, 20)[0] / len(many) * 20 - 1).max() < 0.03


@pytest.mark.parametrize("logits", [{"kind": "sampled", "draws": 9}, {"kind": "hybrid", "k": 4, "draws": 5}])
def test_a_resumed_capture_draws_the_same(
    capture_settings: CaptureSettings,
    changed: Callable[..., CaptureSettings],
    logits: dict[str, object],
    contents: Contents,
) -> None:
    settings = changed(capture_settings, logits=logits)
    capture(settings)
    whole = contents(settings.output)
    (settings.output / "commits" / "0-1.json").unlink()
    capture(settings)
    assert contents(settings.output) == whole
    cache = TeacherCache(settings.output)
    found = cache.read(0, np.arange(20, dtype=np.int64)).at(1.0)
    assert found.log_kept.exp().sum(-1).sub(1).abs().max() < 1e-5
    assert bool((found.log_tail == -math.inf).all())


def test_a_student_learns_from_draws(
    capture_settings: CaptureSettings, changed: Callable[..., CaptureSettings], student_of_cache: Callable[..., Any]
) -> None:
    from palenka.train_student.train import train

    encoding = {"kind": "sampled", "draws": 20, "temperatures": [2.0]}
    capture(changed(capture_settings, logits=encoding))
    result = train(student_of_cache(fraction=0.3, objective={"hard": 0.5, "logit": 0.5}))
    assert math.isfinite(result.validation_cross_entropy)


@pytest.mark.parametrize(
    ("fields", "place", "message"),
    [
        ({"kind": "topk", "draws": 3}, ("draws",), "Extra inputs are not permitted"),
        ({"kind": "sampled", "k": 3}, ("k",), "Extra inputs are not permitted"),
        ({"kind": "hybrid", "k": 0}, ("k",), "Input should be greater than or equal to 1"),
        ({"kind": "low_rank", "step": 0}, ("step",), "Input should be greater than 0"),
        # A byte counts how often a token was drawn.
        ({"kind": "sampled", "draws": 256}, ("draws",), "Input should be less than or equal to 255"),
        ({"kind": "hybrid", "draws": 256}, ("draws",), "Input should be less than or equal to 255"),
        ({"kind": ["topk"]}, ("kind",), "Input should be 'topk', 'low_rank', 'sampled'.* 'hybrid'"),
        ({"kind": "topkk"}, ("kind",), "Input should be 'topk', 'low_rank', 'sampled'.* 'hybrid'"),
        (
            {"kind": "sampled", "temperatures": [1.0, 2.0]},
            (),
            "draws of kind sampled serve only the one they were made at",
        ),
        ({"temperatures": [0.0]}, (), "temperatures are .0.0., but they should be numbers above 0"),
        ({"temperatures": [float("inf")]}, ("temperatures", 0), "Input should be a finite number"),
    ],
)
def test_numbers_that_do_not_fit_the_kind_are_refused(
    fields: dict[str, Any], place: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValidationError, match=message) as refusal:
        encoding_of(**fields)
    assert [mistake["loc"] for mistake in refusal.value.errors()] == [place]
