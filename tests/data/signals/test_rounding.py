"""Rounding at temperatures above 2, which magnify what lies far below the top."""

import math
from collections.abc import Callable

import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from palenka.data.signals.encoding import OutputMatrix, TeacherOutputs
from palenka.data.signals.encodings import LowRankEncoding, TopKEncoding

VOCABULARY, WIDTH = 80, 10
TEMPERATURES = st.floats(2.0, 64.0, exclude_min=True)
SCALES = st.floats(0.05, 12.0)
HALF_CODE = 1 / 32
"""Nats of a distance at the top; 1 + gap / 8 times as much below it."""
HALF_ODDS = 1 / 64


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(TEMPERATURES, SCALES, st.integers(1, VOCABULARY), st.integers(0, 50))
@example(64.0, 12.0, VOCABULARY, 0)
@example(2.5, 0.05, 1, 0)
def test_kept_tokens_are_off_by_half_a_code_over_the_temperature(
    outputs_of: Callable[..., TeacherOutputs], temperature: float, scale: float, k: int, seed: int
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


def said(seed: int, scale: float) -> TeacherOutputs:
    """A linear head's logits; a scale of 12 leaves them hundreds of nats apart."""
    last, weight = scale * normal(seed, 2, 30, WIDTH), normal(11, VOCABULARY, WIDTH)
    head = OutputMatrix(weight, torch.zeros(VOCABULARY))
    return TeacherOutputs(last @ weight.T, {}, {"one": last}, {"one": head}, lambda count: torch.empty(count))


@given(TEMPERATURES, SCALES, st.integers(1, 12), st.integers(0, 20))
@example(64.0, 12.0, 8, 0)
@example(4.0, 12.0, 1, 0)
@example(2.5, 10.5, 5, 11)  # a mass that rounds to 1
def test_by_low_rank_the_whole_vocabulary_keeps_its_masses(temperature: float, scale: float, k: int, seed: int) -> None:
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
