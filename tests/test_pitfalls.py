"""What users were seen to trip over, and what it does to them: nothing."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_logits import (
    LogitsHead,
    MarkLogits,
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
    linear_softmax_cross_entropy,
    probabilities,
)

BACKEND = keras.config.backend()
X = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
Y = np.arange(6) % 5


def model_of(head):
    return keras.Sequential([keras.Input((4,)), head])


def number(tensor):
    return float(ops.convert_to_numpy(tensor))


# Weights of classes, given as arrays

ARRAYS = {
    "a list": [1.0, 2.0, 3.0, 4.0, 5.0],
    "an array": np.arange(1.0, 6.0),
    "a dict of NumPy's numbers": {np.int64(1): np.float32(2.0)},
}


@pytest.mark.parametrize("weights", ARRAYS.values(), ids=ARRAYS)
@pytest.mark.parametrize("option", ["class_weight", "pos_weight"])
def test_a_model_whose_loss_was_given_weights_loads_again(weights, option, tmp_path):
    kind = "softmax" if option == "class_weight" else "sigmoid"
    loss = SoftmaxCrossEntropy if kind == "softmax" else SigmoidCrossEntropy
    labels = Y if kind == "softmax" else np.eye(5)[Y]
    model = model_of(LogitsHead(5, kind))
    model.compile("sgd", loss(**{option: weights}), run_eagerly=True)
    before = model.evaluate(X, labels, verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert loaded.evaluate(X, labels, verbose=0) == pytest.approx(before, rel=1e-6)


def test_a_list_that_changes_later_does_not_change_the_loss():
    weights = [1.0, 1.0, 1.0, 1.0, 1.0]
    loss = SoftmaxCrossEntropy(True, class_weight=weights)
    before = number(loss(Y, X @ np.ones((4, 5), "float32")))
    weights[0] = 100.0
    assert number(loss(Y, X @ np.ones((4, 5), "float32"))) == before


# A head that changes

CHANGES = {"temperature": 2.0, "softcap": 0.5}


@pytest.mark.parametrize("name", CHANGES)
def test_a_head_does_what_its_config_says_also_after_a_change(name):
    head = LogitsHead(5)
    before = ops.convert_to_numpy(head(X))
    setattr(head, name, CHANGES[name])
    found = ops.convert_to_numpy(head(X))
    expected = before / 2 if name == "temperature" else 0.5 * np.tanh(before / 0.5)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert head.get_config()[name] == CHANGES[name]


def test_a_fused_loss_takes_the_logits_at_hand_whatever_weights_made_them():
    model = model_of(LogitsHead(5))
    logits = model(X)
    loss = SoftmaxCrossEntropy(fused=True)
    plain = number(SoftmaxCrossEntropy(fused=False)(Y, logits))
    assert number(loss(Y, logits)) == pytest.approx(plain, rel=1e-5)
    kernel = model.layers[-1].kernel
    kernel.assign(10.0 * ops.convert_to_numpy(kernel))
    if BACKEND == "torch":  # where the kernel itself was changed in place
        with pytest.raises(ValueError, match="weights that were changed in place"):
            loss(Y, logits)
    else:
        assert number(loss(Y, logits)) == pytest.approx(plain, rel=1e-5)


class Warmer(LogitsHead):
    def call(self, inputs, returns=None):
        return super().call(inputs * 10.0, returns)


def test_a_fused_loss_computes_what_a_head_of_ones_own_computed():
    logits = model_of(Warmer(5))(X)
    plain = number(SoftmaxCrossEntropy(fused=False)(Y, logits))
    fused = number(SoftmaxCrossEntropy(fused=True)(Y, logits))
    assert fused == pytest.approx(plain, rel=1e-5)


# Probabilities where logits belong


@pytest.mark.skipif(BACKEND == "jax", reason="whose tensors take no note")
def test_a_mark_is_refused_to_what_keras_made_a_softmax_of():
    made = keras.layers.Activation("softmax")(X)
    with pytest.raises(ValueError, match=r"(?s)`inputs` must be logits.*LogitsHead"):
        MarkLogits()(made)


def test_a_softmax_of_one_class_is_refused():
    with pytest.raises(ValueError, match=r"(?s)at least 2 classes.*'sigmoid'"):
        probabilities(np.array([[2.0], [-2.0]]))


# Precision that somebody else turned down


@pytest.mark.skipif(BACKEND != "torch", reason="an autocast of torch")
def test_autocast_does_not_reach_the_products():
    import torch

    head, kernel = LogitsHead(5), torch.randn(4, 5)
    exact = head(X).detach()
    loss = linear_softmax_cross_entropy(torch.tensor(X), kernel, Y)
    with torch.autocast("cpu", torch.bfloat16):
        assert head(X).dtype == torch.float32
        torch.testing.assert_close(head(X).detach(), exact)
        again = linear_softmax_cross_entropy(torch.tensor(X), kernel, Y)
    torch.testing.assert_close(again, loss)
