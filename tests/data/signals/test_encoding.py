"""Logit encodings: what they keep against float64 softmaxes, and draws against the distribution that they are from."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from palenka.cache_teachers.capture import CaptureSettings, capture
from palenka.data.corpus import Corpus
from palenka.data.signals.cache import TeacherCache
from palenka.data.signals.encoding import LogitEncoding, draw
from palenka.data.windows import WindowRule
from palenka.train_student.model.shapes import ModelShape

VOCABULARY = 300


def logits_of(seed: int, *shape: int) -> Tensor:
    return 3 * torch.randn(*shape, VOCABULARY, generator=torch.Generator().manual_seed(seed)) - 70


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(
    st.sampled_from(["topk", "sampled", "hybrid"]),
    st.sampled_from(["float32", "float16", "uint8"]),
    st.integers(1, VOCABULARY),
    st.integers(1, 60),
    st.floats(0.5, 4),
)
def test_every_encoding_survives_json_and_decodes_to_a_distribution(
    kind: Any, values: Any, k: int, draws: int, temperature: float
) -> None:
    given_numbers = {"topk": {"k": k}, "sampled": {"draws": draws}, "hybrid": {"k": min(k, 200), "draws": draws}}[kind]
    encoding = LogitEncoding(kind=kind, values=values, temperatures=(temperature,), **given_numbers)
    assert LogitEncoding.model_validate_json(encoding.model_dump_json()) == encoding
    codes = encoding.encode(logits_of(k, 2, 3), numbers(draws, 2, 3, encoding.draws))
    expected = encoding.arrays(VOCABULARY)
    assert {name: part.shape[-1] for name, part in codes.items()} == {
        name: width for name, (width, _) in expected.items()
    }
    stored = {name: torch.from_numpy(part.numpy().astype(expected[name][1])) for name, part in codes.items()}
    signal = encoding.decode(stored, {})
    kept, tail = signal.at(temperature)
    total = kept.exp().sum(-1) + tail.exp()
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-5)
    assert bool((kept.exp() <= 1).all())


def test_uint8_values_are_within_half_a_step_and_their_mass_is_exact() -> None:
    logits = logits_of(1, 4, 50)
    encoding = LogitEncoding(k=16, temperatures=(1.0, 2.0))
    signal = encoding.decode(encoding.encode(logits), {})
    for temperature in (1.0, 2.0):
        exact = (logits.double() / temperature).log_softmax(-1)
        kept, tail = signal.at(temperature)
        mass = exact.gather(-1, signal.ids).exp().sum(-1)
        torch.testing.assert_close(kept.double().exp().sum(-1), mass, rtol=1e-5, atol=0)
        torch.testing.assert_close(tail.double().exp(), 1 - mass, rtol=1e-5, atol=1e-9)
        within = kept.double() - exact.gather(-1, signal.ids)
        assert within.abs().max() < 1 / 16 / temperature  # half a step each, and the common shift of as much
        divergence = (exact.gather(-1, signal.ids).exp() * -within).sum(-1)
        assert 0 < divergence.mean() < 2e-4


def test_probabilities_beyond_the_last_step_are_clipped_not_wrapped() -> None:
    logits = torch.tensor([[[0.0, -3.0, -15.0, -20.0, -90.0]]])
    encoding = LogitEncoding(k=5, temperatures=(1.0,))
    kept, _ = encoding.decode(encoding.encode(logits), {}).at(1.0)
    expected = torch.tensor([0.0, -3.0, -15.0, -15.9375, -15.9375]).log_softmax(-1)
    torch.testing.assert_close(kept[0, 0], expected, rtol=0, atol=1e-5)


def estimate(encoding: LogitEncoding, logits: Tensor, seed: int) -> Tensor:
    """The decoded distribution over the whole vocabulary, float64."""
    codes = encoding.encode(logits, numbers(seed, *logits.shape[:-1], encoding.draws))
    signal = encoding.decode(codes, {})
    kept, _ = signal.at(encoding.temperatures[0])
    dense = torch.zeros(logits.shape, dtype=torch.float64)
    return dense.scatter_add(-1, signal.ids, kept.double().exp())


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(
    "fields", [{"kind": "sampled", "draws": 40}, {"kind": "hybrid", "k": 8, "draws": 20, "values": "float32"}]
)
def test_draws_are_unbiased(fields: dict[str, Any], temperature: float) -> None:
    encoding = LogitEncoding(temperatures=(temperature,), **fields)
    logits = logits_of(2, 1, 1).expand(50, 100, -1)
    exact = (logits[0, 0].double() / temperature).softmax(-1)
    found = estimate(encoding, logits, seed=3).flatten(0, 1)
    mean, error = found.mean(0), found.std(0) / math.sqrt(5000)
    deviations = (mean - exact).abs() / error.clamp_min(1e-7)
    drawn = exact * 5000 * encoding.draws > 50
    assert drawn.sum() > 30
    assert deviations[drawn].max() < 5
    if encoding.k:  # the most probable tokens are not drawn: exact every time
        top = exact.topk(8).indices
        torch.testing.assert_close(found[:, top], exact[top].expand(5000, -1), rtol=1e-4, atol=0)


def test_counts_are_those_of_a_plain_loop_over_the_cumulative_distribution() -> None:
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
    losses_of_logits: Callable[..., tuple[Tensor, dict[str, Tensor]]], fields: dict[str, Any]
) -> None:
    encoding = LogitEncoding(temperatures=(2.0,), values="float32", **fields)
    teacher, student = logits_of(6, 2, 7), logits_of(7, 2, 7).requires_grad_()
    target = estimate(encoding, teacher, seed=8)
    signal = encoding.decode(encoding.encode(teacher, numbers(8, 2, 7, encoding.draws)), {})
    total, _ = losses_of_logits(student, {"t": signal}, {"t": 1.0}, 2.0)
    (gradient,) = torch.autograd.grad(total, student)
    dense = student.detach().double().requires_grad_()
    loss = -4 * (target * (dense / 2).log_softmax(-1)).sum(-1).mean()
    (expected,) = torch.autograd.grad(loss, dense)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-8)
    entropy = -4 * (torch.where(target > 0, target * target.log(), 0.0)).sum(-1).mean()
    assert total.item() == pytest.approx((loss - entropy).item(), rel=1e-4)


def test_the_draws_of_a_window_follow_from_its_address() -> None:
    rule = WindowRule(length=16, views=2)
    indices = np.array([5, 9, 2], np.int64)
    some = rule.uniforms(0, indices, 7)
    assert some.shape == (3, 16, 7)
    assert np.array_equal(rule.uniforms(0, indices[1:], 7), some[1:])
    assert not np.array_equal(rule.uniforms(1, indices, 7), some)
    many = rule.uniforms(0, np.arange(2000), 7).flatten()
    assert 0 <= many.min() <= many.max() < 1
    assert np.abs(np.histogram(many, 20)[0] / len(many) * 20 - 1).max() < 0.03


@pytest.mark.parametrize("logits", [{"kind": "sampled", "draws": 9}, {"kind": "hybrid", "k": 4, "draws": 5}])
def test_a_resumed_capture_draws_the_same(capture_settings: CaptureSettings, logits: dict[str, object]) -> None:
    settings = CaptureSettings.model_validate(capture_settings.as_plain() | {"logits": logits})
    capture(settings)
    whole = {path: path.read_bytes() for path in settings.output.rglob("*") if path.is_file()}
    (settings.output / "commits" / "0-1.json").unlink()
    capture(settings)
    assert {path: path.read_bytes() for path in settings.output.rglob("*") if path.is_file()} == whole
    cache = TeacherCache(settings.output)
    kept, tail = cache.read(0, np.arange(20, dtype=np.int64)).at(1.0)
    assert kept.exp().sum(-1).sub(1).abs().max() < 1e-5
    assert bool((tail == -math.inf).all())


def test_a_student_learns_from_draws(
    capture_settings: CaptureSettings, corpus: Corpus, make_shape: Callable[..., ModelShape]
) -> None:
    from palenka.train_student.settings import TrainSettings
    from palenka.train_student.train import train

    encoding = {"kind": "sampled", "draws": 20, "temperatures": [2.0]}
    settings = CaptureSettings.model_validate(capture_settings.as_plain() | {"logits": encoding})
    capture(settings)
    result = train(
        TrainSettings.model_validate(
            {
                "corpus": corpus.directory,
                "output": settings.output.with_name("run"),
                "model": make_shape(),
                "windows": settings.windows,
                "fraction": 0.3,
                "teachers": {"t": {"cache": settings.output}},
                "objective": {"hard": 0.5, "logit": 0.5},
                "global_batch": 16,
            }
        )
    )
    assert math.isfinite(result.validation_cross_entropy)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "topk", "draws": 3}, "draws is 3, but kind topk needs none"),
        ({"kind": "sampled", "k": 3}, "k is 3, but kind sampled needs none"),
        ({"kind": "hybrid", "k": 0}, "k is 0, but kind hybrid needs at least 1; set it to 16"),
        ({"kind": "sampled", "temperatures": [1.0, 2.0]}, "draws of kind sampled serve only the one they were made at"),
        ({"temperatures": [0.0]}, "temperatures are .0.0., but they should be numbers above 0"),
    ],
)
def test_numbers_that_do_not_fit_the_kind_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LogitEncoding(**fields)
