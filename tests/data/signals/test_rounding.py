"""Rounding at temperatures above 2, which magnify what lies far below the top."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from palenka.data.signals.encoding import OutputMatrix, TeacherOutputs
from palenka.data.signals.encodings import LowRankEncoding, TopKEncoding
from palenka.data.signals.rounding import LARGEST_INT8, narrowed, to_int8, widened

Normal = Callable[..., Tensor]

VOCABULARY, WIDTH = 80, 10
TEMPERATURES = st.floats(2.0, 64.0, exclude_min=True)
SCALES = st.floats(0.05, 12.0)
HALF_CODE = 1 / 32
"""Nats of a distance at the top; 1 + gap / 8 times as much below it."""
HALF_ODDS = 1 / 64


@given(TEMPERATURES, SCALES, st.integers(1, VOCABULARY), st.integers(0, 50))
@example(64.0, 12.0, VOCABULARY, 0)
@example(2.5, 0.05, 1, 0)
def test_kept_tokens_are_off_by_half_a_code_over_the_temperature(
    normal: Normal, outputs_of: Callable[..., TeacherOutputs], temperature: float, scale: float, k: int, seed: int
) -> None:
    logits = scale * normal(seed, 2, 3, VOCABULARY) + 400
    encoding = TopKEncoding(k=k, temperatures=(temperature,))
    found = encoding.decode(encoding.encode(outputs_of(logits), {}), {}, temperature)
    exact = (logits.double() / temperature).log_softmax(-1)
    kept = exact if found.ids is None else exact.gather(-1, found.ids)
    gap = (kept.amax(-1, keepdim=True) - kept) * temperature
    # Distances beyond 50 nats have no code; half a code is 1 % more on its wider side.
    is_coded = (gap < 50).all(-1)
    error = 1.01 * HALF_CODE * (1 + gap / 8).amax(-1)
    bound = 2 * error / temperature + HALF_ODDS + 1e-3
    off = (found.log_kept.double() - kept).abs().amax(-1)
    assert (off[is_coded] <= bound[is_coded]).all()
    whole = found.log_kept.double().exp().sum(-1) + found.log_tail.double().exp()
    torch.testing.assert_close(whole, torch.ones_like(whole), rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def said(normal: Normal) -> Callable[[int, float], TeacherOutputs]:
    """A linear head's logits of a seed and a scale; a scale of 12 leaves them hundreds of nats apart."""

    def say(seed: int, scale: float) -> TeacherOutputs:
        last, weight = scale * normal(seed, 2, 30, WIDTH), normal(11, VOCABULARY, WIDTH)
        head = OutputMatrix(weight, torch.zeros(VOCABULARY))
        return TeacherOutputs(last @ weight.T, {}, {"one": last}, {"one": head}, lambda count: torch.empty(count))

    return say


@given(TEMPERATURES, SCALES, st.integers(1, 12), st.integers(0, 20))
@example(64.0, 12.0, 8, 0)
@example(4.0, 12.0, 1, 0)
@example(2.5, 10.5, 5, 11)  # a mass that rounds to 1
def test_by_low_rank_the_whole_vocabulary_keeps_its_masses(
    said: Callable[[int, float], TeacherOutputs], temperature: float, scale: float, k: int, seed: int
) -> None:
    outputs = said(seed, scale)
    encoding = LowRankEncoding(k=k, rank=WIDTH, temperatures=(temperature,))
    statics = encoding.measure([said(number + 100, scale) for number in range(6)])
    arrays = encoding.encode(outputs, statics)
    found = encoding.decode(arrays, statics, temperature)
    logs = found.log_probabilities(VOCABULARY).double()
    assert torch.isfinite(logs).all()
    whole = logs.exp().sum(-1)
    torch.testing.assert_close(whole, torch.ones_like(whole), rtol=0, atol=1e-4)
    exact = (outputs.logits.double() / temperature).log_softmax(-1)
    assert found.ids is not None
    mass = exact.gather(-1, found.ids).logsumexp(-1).exp()
    off = mass - found.log_kept.double().logsumexp(-1).exp()
    # Log-odds are off by half a step, so a mass by a quarter of that at most.
    assert off.abs().max() <= HALF_ODDS / 4 + 1e-4
    # Full rank: what is left is rounding, a few hundredths of a nat before the temperature divides it.
    divergence = (exact.exp() * (exact - logs)).sum(-1).mean()
    assert math.isfinite(divergence)
    if not any(encoding.clipped(arrays).values()):
        assert divergence <= 0.05


@given(st.lists(st.floats(-4000, 4000, width=32), min_size=1, max_size=20), st.sampled_from([4.0, 24.0]))
def test_steps_widen_with_the_distance_and_give_back_what_they_had(numbers: list[float], width: float) -> None:
    units = torch.tensor(numbers)
    exact = np.array(numbers, np.float32).astype(np.float64)
    narrow = narrowed(units, width)
    expected = np.sign(exact) * width * np.log1p(np.abs(exact) / width)
    np.testing.assert_allclose(narrow.numpy(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(widened(narrow, width), units, rtol=1e-4, atol=1e-5)
    reach = width * np.expm1(LARGEST_INT8 / width)
    # Half a step is off by half its width there, as long as a byte reaches so far.
    decoded = widened(to_int8(narrow), width).double().numpy()
    within = np.abs(exact) < reach
    assert (np.abs(decoded - exact)[within] <= 0.51 * (1 + np.abs(exact) / width)[within] * np.exp(0.5 / width)).all()
