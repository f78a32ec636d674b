"""The most probable tokens, their exact tail mass, and what decoding makes of them, against float64."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palenka.data.signals.encodings import TopKEncoding
from palenka.data.signals.signal import TeacherSignal
from palenka.data.signals.top_k import differences, log_shares, top_k

TEMPERATURES = (1.0, 2.0, 0.7)


def random_logits(seed: int, vocabulary: int, scale: float = 4.0) -> torch.Tensor:
    return torch.randn(2, 5, vocabulary, generator=torch.Generator().manual_seed(seed)) * scale


@given(seed=st.integers(0, 10_000), vocabulary=st.integers(2, 60), scale=st.sampled_from([0.1, 4.0, 30.0]))
def test_top_k_and_tail_agree_with_float64(seed: int, vocabulary: int, scale: float) -> None:
    logits = random_logits(seed, vocabulary, scale)
    k = 1 + seed % (vocabulary - 1)
    kept = top_k(logits, k, TEMPERATURES)
    assert kept.ids is not None
    exact = logits.double().numpy()
    for row, ids in zip(exact.reshape(-1, vocabulary), kept.ids.reshape(-1, k).numpy(), strict=True):
        assert set(row[ids]) == set(np.sort(row)[-k:])
        assert (np.diff(ids) > 0).all()
    for number, temperature in enumerate(TEMPERATURES):
        probabilities = np.exp(exact / temperature - np.logaddexp.reduce(exact / temperature, axis=-1, keepdims=True))
        outside = np.ones_like(probabilities, dtype=bool)
        np.put_along_axis(outside, kept.ids.numpy(), False, axis=-1)
        expected = np.log(np.where(outside, probabilities, 0).sum(axis=-1))
        np.testing.assert_allclose(kept.log_tail[..., number].numpy(), expected, rtol=1e-5, atol=1e-4)


@given(seed=st.integers(0, 10_000), k=st.integers(1, 20), half=st.booleans())
def test_decoding_keeps_the_mass_exact_however_coarse_the_values(seed: int, k: int, half: bool) -> None:
    logits = random_logits(seed, 20)
    kept = top_k(logits, k, TEMPERATURES)
    values = kept.values.half() if half else kept.values
    for number, temperature in enumerate(TEMPERATURES):
        tail = kept.log_tail[..., number]
        shares = log_shares(values, tail, temperature)
        total = shares.double().exp().sum(-1) + tail.double().exp()
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-6)
        exact = (logits.double() / temperature).log_softmax(-1)
        expected = exact if kept.ids is None else exact.gather(-1, kept.ids)
        torch.testing.assert_close(shares.double(), expected, rtol=0, atol=0.04 if half else 2e-5)


def test_everything_kept_is_the_whole_distribution_in_its_order_without_ids(
    signal_of: Callable[..., TeacherSignal],
) -> None:
    logits = random_logits(0, 12)
    kept = top_k(logits, 12, (1.0, 2.0))
    assert kept.ids is None
    assert (kept.log_tail == -math.inf).all()
    torch.testing.assert_close(kept.values, logits.log_softmax(-1), rtol=0, atol=1e-6)
    decoded = signal_of(logits, 12).at(2.0)
    assert decoded.ids is None
    assert (decoded.log_tail == -math.inf).all()
    torch.testing.assert_close(decoded.log_kept, (logits / 2).log_softmax(-1), rtol=0, atol=1e-6)
    assert set(TopKEncoding(k=12).arrays(12)) == {"values", "log_tail"}


def test_large_batches_are_computed_in_chunks_without_a_difference() -> None:
    logits = torch.randn(3, 7, 2**18, generator=torch.Generator().manual_seed(0))
    whole, single = top_k(logits, 4, (1.0,)), top_k(logits[1:2, 3:4], 4, (1.0,))
    assert whole.ids is not None
    assert single.ids is not None
    assert torch.equal(whole.ids[1:2, 3:4], single.ids)
    torch.testing.assert_close(whole.log_tail[1:2, 3:4], single.log_tail)


@given(ids=st.sets(st.integers(0, 2**16 - 1), min_size=1, max_size=40))
def test_ids_are_the_sums_of_their_differences(ids: set[int]) -> None:
    ascending = torch.tensor(sorted(ids))
    assert differences(ascending).min() >= 0
    assert torch.equal(differences(ascending).cumsum(-1), ascending)


def test_a_signal_at_another_temperature_is_refused(signal_of: Callable[..., TeacherSignal]) -> None:
    with pytest.raises(ValueError, match=r"temperatures \(1.0, 2.0\), not at 4.0"):
        signal_of(random_logits(0, 8), 3).at(4.0)
