"""The most probable tokens, their exact tail mass, and what decoding makes of them, against float64."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from palenka.data.signals.encodings import TopKEncoding
from palenka.data.signals.signal import TeacherSignal
from palenka.data.signals.top_k import (
    LARGEST_GAP_CODE,
    gaps,
    log_masses,
    log_odds,
    pack_gaps,
    pack_odds,
    top_k,
    unpack_gaps,
    unpack_odds,
)

TEMPERATURES = (1.0, 2.0, 0.7)


@given(seed=st.integers(0, 10_000), vocabulary=st.integers(2, 60), scale=st.sampled_from([0.1, 4.0, 30.0]))
def test_top_k_and_tail_agree_with_float64(
    logits_of: Callable[..., Tensor], seed: int, vocabulary: int, scale: float
) -> None:
    logits = logits_of(seed, 2, 5, vocabulary, scale=scale)
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


@pytest.mark.parametrize("coarse", [False, True])
@given(seed=st.integers(0, 10_000), k=st.integers(1, 20))
def test_decoding_keeps_the_mass_however_coarse_the_values(
    logits_of: Callable[..., Tensor], coarse: bool, seed: int, k: int
) -> None:
    logits = logits_of(seed, 2, 5, 20)
    kept = top_k(logits, k, TEMPERATURES)
    below = gaps(kept.values)
    values = -unpack_gaps(pack_gaps(below)) if coarse else -below
    for number, temperature in enumerate(TEMPERATURES):
        odds = log_odds(kept.log_tail[..., number])
        log_mass, log_tail = log_masses(unpack_odds(pack_odds(odds)) if coarse else odds)
        total = log_mass.double().exp() + log_tail.double().exp()
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-6)
        exact = (logits.double() / temperature).log_softmax(-1)
        expected = exact if kept.ids is None else exact.gather(-1, kept.ids)
        mass = expected.exp().sum(-1)
        torch.testing.assert_close(log_mass.double().exp(), mass, rtol=0, atol=0.25 / 64 + 1e-6 if coarse else 1e-6)
        shares = (values / temperature).log_softmax(-1).double().exp() * mass.unsqueeze(-1)
        torch.testing.assert_close(shares, expected.exp(), rtol=0, atol=0.03 if coarse else 2e-6)


@given(st.floats(0, 50), st.floats(0, 50))
def test_distances_come_back_within_half_a_step_and_in_their_order(one: float, other: float) -> None:
    pair = torch.tensor([one, other])
    found = unpack_gaps(pack_gaps(pair))
    assert bool(((found - pair).abs() <= 1 / 32 * (1 + (pair + 0.3) / 8) + 1e-5).all())
    if one <= other:
        assert found[0] <= found[1]


def test_the_share_of_clipped_distances_is_counted_where_values_are_distances() -> None:
    stored = {"values": torch.tensor([[0, 255, 255, 10], [0, 1, 2, 255]], dtype=torch.uint8)}
    assert TopKEncoding(k=4, values="uint8").clipped(stored) == {"values": 3 / 8}
    assert TopKEncoding(k=4, values="float32").clipped({"values": stored["values"].float()}) == {}


def test_distances_beyond_the_last_step_are_clipped_not_wrapped() -> None:
    assert pack_gaps(torch.tensor([0.0, 50.0, 60.0, 1e9])).tolist()[-2:] == [LARGEST_GAP_CODE] * 2
    assert unpack_gaps(pack_gaps(torch.tensor([1e9]))).item() == pytest.approx(50.6, abs=0.1)


def test_odds_are_exact_at_both_ends() -> None:
    log_tail = torch.tensor([-30.0, -20.0, -1e-6, -1e-4, -math.inf])
    log_mass, back = log_masses(log_odds(log_tail))
    torch.testing.assert_close(back, log_tail, rtol=1e-5, atol=0)
    torch.testing.assert_close(log_mass.double(), torch.log(-torch.expm1(log_tail.double())), rtol=1e-5, atol=1e-12)
    coarse = log_masses(unpack_odds(pack_odds(log_odds(log_tail))))[1]
    assert coarse[-1] < -500  # no tail stays no tail
    torch.testing.assert_close(coarse[:2], log_tail[:2], rtol=0, atol=1 / 128 + 1e-6)


def test_everything_kept_is_the_whole_distribution_in_its_order_without_ids(
    signal_of: Callable[..., TeacherSignal], logits_of: Callable[..., Tensor]
) -> None:
    logits = logits_of(0, 2, 5, 12)
    kept = top_k(logits, 12, (1.0, 2.0))
    assert kept.ids is None
    assert (kept.log_tail == -math.inf).all()
    torch.testing.assert_close(kept.values, logits.log_softmax(-1), rtol=0, atol=1e-6)
    decoded = signal_of(logits, 12).at(2.0)
    assert decoded.ids is None
    assert (decoded.log_tail == -math.inf).all()
    torch.testing.assert_close(decoded.log_kept, (logits / 2).log_softmax(-1), rtol=0, atol=1e-6)
    assert set(TopKEncoding(k=12).arrays(12)) == {"values", "log_odds"}


def test_large_batches_are_computed_in_chunks_without_a_difference(normal: Callable[..., Tensor]) -> None:
    logits = normal(0, 3, 7, 2**18)
    whole, single = top_k(logits, 4, (1.0,)), top_k(logits[1:2, 3:4], 4, (1.0,))
    assert whole.ids is not None
    assert single.ids is not None
    assert torch.equal(whole.ids[1:2, 3:4], single.ids)
    torch.testing.assert_close(whole.log_tail[1:2, 3:4], single.log_tail)


def test_a_signal_at_another_temperature_is_refused(
    signal_of: Callable[..., TeacherSignal], logits_of: Callable[..., Tensor]
) -> None:
    with pytest.raises(ValueError, match=r"temperatures \(1.0, 2.0\), not at 4.0"):
        signal_of(logits_of(0, 2, 5, 8), 3).at(4.0)
