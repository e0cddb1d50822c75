"""A soft-cap as the fused pass computes it is one to the digits of float32."""

import numpy as np
import pytest
from keras import ops

from keras_logits.maths.squash import Squash

EPS = float(np.finfo("float32").eps)


def logits(squash, scores, bias=None):
    scores = ops.convert_to_tensor(scores)
    return ops.convert_to_numpy(squash.of_products(scores, bias, as_quotient=True))


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("softcap", [0.5, 30.0, 1e20])
@pytest.mark.parametrize("scale", [1e-6, 1e-2, 1.0, 30.0, 1e4])
def test_it_is_right_at_every_scale(scale, softcap, temperature):
    scores = np.random.default_rng(0).normal(size=5001).astype("float32")
    scores *= np.float32(scale)
    wide = scores.astype("float64")
    expected = softcap * np.tanh(wide / softcap) / temperature
    found = logits(Squash(softcap, temperature), scores)
    error = np.abs(found - expected)
    # Where all scores are small, none is much larger than its own last digits.
    assert (error <= 10 * EPS * np.abs(expected)).all()


def test_what_is_not_finite_is_capped_or_stays_nan():
    scores = np.array([np.inf, -np.inf, np.nan, 3e38, -3e38, 0.0], "float32")
    expected = np.array([2, -2, np.nan, 2, -2, 0])
    np.testing.assert_allclose(logits(Squash(2.0), scores), expected, rtol=2 * EPS)
    scores[3:5] = np.inf, -np.inf  # not far from a cap that is as large
    found = logits(Squash(2e30), scores)
    np.testing.assert_allclose(found, 1e30 * expected, rtol=2 * EPS)


def test_a_bias_is_added_before_and_masks_if_it_is_minus_infinity():
    scores = np.zeros(3, "float32")
    bias = ops.convert_to_tensor(np.array([-np.inf, 1.0, 40.0], "float32"))
    found = logits(Squash(5.0), scores, bias)
    expected = [-np.inf, 5 * np.tanh(0.2), 5 * np.tanh(8.0)]
    np.testing.assert_allclose(found, expected, rtol=4 * EPS)


def test_without_a_cap_it_is_the_plain_map():
    scores = np.linspace(-3, 3, 7, dtype="float32")
    np.testing.assert_array_equal(logits(Squash(None, 0.5), scores), scores / 0.5)
