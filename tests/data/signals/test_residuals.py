"""Kept log-probabilities as what a prediction leaves of them: within half a step, whatever the prediction."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from palenka.data.signals.draws import differences, sums
from palenka.data.signals.residuals import pack_residuals, residuals, unpack_residuals
from palenka.data.signals.rounding import LARGEST_INT8

K = 8
Normal = Callable[..., Tensor]


@given(seed=st.integers(0, 10_000), error=st.floats(0, 3), log_mass=st.floats(-9, -1e-6))
def test_an_error_is_half_a_step_of_the_predicted_probability(
    normal: Normal, seed: int, error: float, log_mass: float
) -> None:
    predicted = 2 * normal(seed, 5, K)
    values = predicted + error * normal(seed + 1, 5, K) + 3.0
    mass = torch.full((5,), log_mass)
    left = residuals(values, predicted, mass)
    codes = pack_residuals(left, predicted, mass)
    found = unpack_residuals(codes, predicted, mass)
    shares = predicted.double().softmax(-1) * math.exp(log_mass)
    step = (1 / (32 * shares.sqrt())).clamp_max(1 / 4)
    # Steps widen as 1 + |distance| / 4; the 1.04 is for the far end of one, and for float32.
    allowed = step / 2 * (1 + left.abs().double() / 4) * 1.04
    inside = codes.abs() < LARGEST_INT8
    assert bool(((found - left).abs().double() <= allowed)[inside].all())


def test_residuals_do_not_see_a_constant_and_have_no_mean_under_the_prediction(normal: Normal) -> None:
    predicted, values, mass = normal(0, 4, K), normal(1, 4, K), torch.full((4,), -0.5)
    left = residuals(values, predicted, mass)
    torch.testing.assert_close(residuals(values + 70, predicted - 9, mass), left, rtol=0, atol=1e-4)
    torch.testing.assert_close((predicted.softmax(-1) * left).sum(-1), torch.zeros(4), rtol=0, atol=1e-6)


def test_float32_is_kept_as_it_is(normal: Normal) -> None:
    left, predicted, mass = normal(2, 4, K), normal(3, 4, K), torch.zeros(4)
    assert unpack_residuals(left, predicted, mass) is left


@pytest.mark.parametrize("distance", [0.0, 1e-3, 0.3, 2.0, 11.0])
def test_a_token_that_is_far_from_its_prediction_has_room(distance: float) -> None:
    predicted = torch.tensor([[0.0, -0.1]])
    left = torch.tensor([[distance, -distance]])
    found = unpack_residuals(pack_residuals(left, predicted, torch.zeros(1)), predicted, torch.zeros(1))
    torch.testing.assert_close(found, left, rtol=0.03, atol=0.03)


@given(ids=st.sets(st.integers(0, 2**16 - 1), min_size=1, max_size=40))
def test_ids_are_the_sums_of_their_differences(ids: set[int]) -> None:
    ascending = torch.tensor(sorted(ids))
    assert differences(ascending).min() >= 0
    assert torch.equal(sums(differences(ascending)), ascending)
