"""torch: tensors change in place, and a mark must not outlive such a change."""

import keras
import numpy as np
import pytest

from keras_logits import LogitsHead, MarkLogits, SoftmaxCrossEntropy
from keras_logits.provenance import Mark, mark, origin_of

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "torch", reason="other tensors do not change in place"
)
if keras.config.backend() == "torch":
    import torch

X = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
Y = np.arange(8) % 4


def doubled(tensor):
    tensor *= 2.0


def clipped(tensor):
    tensor.clamp_(-1.0, 1.0)


def set_in_part(tensor):
    tensor[0] = 0.0


def changed_through_a_view(tensor):
    tensor.view(-1).add_(1.0)


def changed_through_a_detached_one(tensor):
    tensor.detach().mul_(2.0)


@pytest.mark.parametrize(
    "change",
    [
        doubled,
        clipped,
        set_in_part,
        changed_through_a_view,
        changed_through_a_detached_one,
    ],
)
@pytest.mark.parametrize("layer", [LogitsHead(3), MarkLogits()], ids=["head", "mark"])
def test_logits_that_were_changed_in_place_are_refused(change, layer):
    logits = layer(torch.tensor(X))
    change(logits)
    expected = (
        r"changed in place.*\nReceived: version 1 .*\nFix: y_pred = y_pred \* scale"
    )
    with pytest.raises(ValueError, match=expected):
        SoftmaxCrossEntropy()(Y % 3, logits)


def test_logits_that_were_changed_in_place_can_be_marked_again():
    head = LogitsHead(4)
    logits = head(X)
    logits *= 2.0
    again = MarkLogits()(logits)
    assert origin_of(again).activation == "softmax"
    SoftmaxCrossEntropy()(Y, again)


def test_a_result_out_of_place_is_simply_unmarked():
    head = LogitsHead(4)
    assert origin_of(head(X) * 2.0) is None


def test_a_backward_pass_is_no_change():
    logits = LogitsHead(4)(X)
    loss = SoftmaxCrossEntropy()
    before = loss(Y, logits)
    before.backward(retain_graph=True)
    assert loss(Y, logits) == before


@pytest.mark.parametrize("returns", ["logits", "probabilities"])
@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
def test_the_mark_is_read_without_gradients(mode, returns):
    head, loss = LogitsHead(4, returns=returns), SoftmaxCrossEntropy()
    expected = loss(Y, head(X)).detach()
    with getattr(torch, mode)():
        outputs = head(X)
        assert origin_of(outputs).head is head
        found = loss(Y, outputs)
    assert origin_of(outputs).head is head
    assert found == expected


def test_a_mark_set_in_inference_mode_is_read_outside():
    with torch.inference_mode():
        logits = torch.tensor(X)
        mark(logits, Mark("softmax"))
    assert origin_of(logits).activation == "softmax"
    assert origin_of(logits.clone()) is None


def test_a_module_inside_a_module_keeps_the_mark():
    """As a user of torch nests them: a Keras layer is a torch module."""

    class Net(torch.nn.Module):
        def __init__(self, last):
            super().__init__()
            self.body, self.last = torch.nn.Linear(3, 5), last

        def forward(self, x):
            return self.last(torch.relu(self.body(x)))

    head = LogitsHead(4)
    head.build((None, 5))
    net = Net(head)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = net.last.kernel.numpy().copy()
    SoftmaxCrossEntropy()(Y, net(torch.tensor(X))).backward()
    optimizer.step()
    assert np.abs(net.last.kernel.numpy() - before).max() > 0


@pytest.mark.filterwarnings("ignore")  # torch.compile warns of what it does itself
def test_a_compiled_step_reads_the_mark():
    head, loss = LogitsHead(4), SoftmaxCrossEntropy()
    head.build(X.shape)
    x, y = torch.tensor(X), torch.tensor(Y)

    def step(x, y):
        return loss(y, head(x))

    # All of the compiler but its last part, which writes C++.
    found = torch.compile(step, backend="aot_eager")(x, y)
    torch.testing.assert_close(found, step(x, y))


@pytest.mark.filterwarnings("ignore")
def test_a_mark_is_set_and_read_in_one_compiled_graph():
    head = LogitsHead(4)
    head.build(X.shape)

    def step(x):
        logits = head(x)
        return logits if origin_of(logits).head is head else None

    found = torch.compile(step, backend="eager", fullgraph=True)(torch.tensor(X))
    assert found is not None
