"""torch: a gradient that was handed out belongs to who asked for it."""

import keras
import numpy as np
import pytest

from keras_logits import SigmoidCrossEntropy, SoftmaxCrossEntropy

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "torch", reason="other tensors do not change in place"
)
if keras.config.backend() == "torch":
    import torch

Z = np.random.default_rng(0).normal(size=(4, 5)).astype("float32")
IDS = np.arange(4)
LOSSES = {
    "plain": (SoftmaxCrossEntropy(True), IDS),
    "options": (SoftmaxCrossEntropy(True, label_smoothing=0.1, focal_gamma=1.0), IDS),
    "sigmoid": (SigmoidCrossEntropy(True), np.eye(4, 5, dtype="float32")),
}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", LOSSES)
def test_it_may_be_changed_in_place_and_asked_for_again(name, dtype):
    loss, labels = LOSSES[name]
    z = torch.tensor(Z, dtype=getattr(torch, dtype), requires_grad=True)
    value = loss(torch.tensor(labels), z)
    first = torch.autograd.grad(value, z, retain_graph=True)[0]
    kept = first.clone()
    first.mul_(100.0)
    for _ in range(2):
        again = torch.autograd.grad(value, z, retain_graph=True)[0]
        torch.testing.assert_close(again, kept)
        again.zero_()
    twice = torch.autograd.grad(2.0 * value, z)[0]
    torch.testing.assert_close(twice, 2.0 * kept)


def test_a_clipped_gradient_leaves_the_next_backward_pass_alone():
    loss, labels = LOSSES["plain"]
    z = torch.tensor(Z, requires_grad=True)
    value = loss(torch.tensor(labels), z)
    value.backward(retain_graph=True)
    expected = z.grad.clone()
    torch.nn.utils.clip_grad_norm_([z], 1e-3)
    z.grad = None
    value.backward()
    torch.testing.assert_close(z.grad, expected)


def test_a_backward_pass_frees_the_gradient_that_it_handed_out():
    loss, labels = LOSSES["plain"]
    z = torch.tensor(Z, requires_grad=True)
    value = loss(torch.tensor(labels), z)
    value.backward()
    with pytest.raises(RuntimeError, match="a second time"):
        value.backward()
