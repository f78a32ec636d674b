"""The teacher signal: top-k, exact tail mass, decoding."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palenka.data.signals.signal import TeacherSignal, log1mexp, top_k_signal

TEMPERATURES = (1.0, 2.0, 0.7)


def random_logits(seed: int, vocabulary: int, scale: float = 4.0) -> torch.Tensor:
    return torch.randn(2, 5, vocabulary, generator=torch.Generator().manual_seed(seed)) * scale


@given(seed=st.integers(0, 10_000), vocabulary=st.integers(2, 60), scale=st.sampled_from([0.1, 4.0, 30.0]))
def test_top_k_and_tail_agree_with_float64(seed: int, vocabulary: int, scale: float) -> None:
    logits = random_logits(seed, vocabulary, scale)
    k = 1 + seed % (vocabulary - 1)
    signal = top_k_signal(logits, k, TEMPERATURES)
    exact = logits.double().numpy()
    for row, ids in zip(exact.reshape(-1, vocabulary), signal.ids.reshape(-1, k).numpy(), strict=True):
        assert set(row[ids]) == set(np.sort(row)[-k:])
        assert (np.diff(ids) > 0).all()
    for number, temperature in enumerate(TEMPERATURES):
        probabilities = np.exp(exact / temperature - np.logaddexp.reduce(exact / temperature, axis=-1, keepdims=True))
        outside = np.ones_like(probabilities, dtype=bool)
        np.put_along_axis(outside, signal.ids.numpy(), False, axis=-1)
        expected = np.log(np.where(outside, probabilities, 0).sum(axis=-1))
        np.testing.assert_allclose(signal.log_tail[..., number].numpy(), expected, rtol=1e-5, atol=1e-4)


@given(seed=st.integers(0, 10_000), k=st.integers(1, 20), half=st.booleans())
def test_decoding_keeps_the_mass_exact_however_coarse_the_values(seed: int, k: int, half: bool) -> None:
    logits = random_logits(seed, 20)
    signal = top_k_signal(logits, k, TEMPERATURES)
    if half:
        signal = TeacherSignal(signal.ids, signal.values.half(), signal.log_tail, signal.temperatures)
    for temperature in TEMPERATURES:
        kept, tail = signal.at(temperature)
        total = kept.double().exp().sum(-1) + tail.double().exp()
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-6)
        exact = (logits.double() / temperature).log_softmax(-1).gather(-1, signal.ids)
        torch.testing.assert_close(kept.double(), exact, rtol=0, atol=0.04 if half else 2e-5)


def test_everything_kept_is_the_whole_distribution() -> None:
    logits = random_logits(0, 12)
    signal = top_k_signal(logits, 12, (1.0, 2.0))
    assert (signal.log_tail == -math.inf).all()
    kept, _ = signal.at(2.0)
    torch.testing.assert_close(kept, (logits / 2).log_softmax(-1), rtol=0, atol=1e-6)


def test_large_batches_are_computed_in_chunks_without_a_difference() -> None:
    logits = torch.randn(3, 7, 2**18, generator=torch.Generator().manual_seed(0))
    whole = top_k_signal(logits, 4, (1.0,))
    single = top_k_signal(logits[1:2, 3:4], 4, (1.0,))
    assert torch.equal(whole.ids[1:2, 3:4], single.ids)
    torch.testing.assert_close(whole.log_tail[1:2, 3:4], single.log_tail)


def test_another_temperature_is_refused() -> None:
    signal = top_k_signal(random_logits(0, 8), 3, (1.0, 2.0))
    with pytest.raises(ValueError, match=r"temperatures \(1.0, 2.0\), not at 4.0"):
        signal.at(4.0)


@given(x=st.floats(-80, -1e-30))
def test_log1mexp_agrees_with_float64(x: float) -> None:
    expected = math.log(-math.expm1(x)) if x > -0.5 else math.log1p(-math.exp(x))
    assert log1mexp(torch.tensor(x)).item() == pytest.approx(expected, rel=1e-5, abs=1e-7)
