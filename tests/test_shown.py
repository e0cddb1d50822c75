"""What layers and losses show of themselves."""

import keras
import pytest

from keras_logits import (
    LogitsHead,
    MarkLogits,
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
)

SHOWN = {
    "LogitsHead(10, name='a')": lambda: LogitsHead(10, name="a"),
    "LogitsHead(3, activation='sigmoid', returns='probabilities', name='b')": (
        lambda: LogitsHead(3, "sigmoid", returns="probabilities", name="b")
    ),
    "LogitsHead(10, softcap=30.0, reports=('accuracy',), name='c')": (
        lambda: LogitsHead(10, softcap=30, reports=["accuracy"], name="c")
    ),
    "LogitsHead(5, tied_to=words, name='d')": (
        lambda: LogitsHead(
            5, tied_to=keras.layers.Embedding(5, 4, name="words"), name="d"
        )
    ),
    "MarkLogits('sigmoid', name='e')": lambda: MarkLogits("sigmoid", name="e"),
    "SoftmaxCrossEntropy()": SoftmaxCrossEntropy,
    "SoftmaxCrossEntropy(True, class_weight={1: 2.0}, fused=False, reduction=None)": (
        lambda: SoftmaxCrossEntropy(
            True, class_weight={1: 2.0}, fused=False, reduction=None
        )
    ),
    "SigmoidCrossEntropy(pos_weight=[1.0, 2.0], name='f')": (
        lambda: SigmoidCrossEntropy(pos_weight=[1.0, 2.0], name="f")
    ),
}


@pytest.mark.parametrize("shown", SHOWN)
def test_a_repr_is_the_call_with_what_is_no_default(shown):
    assert repr(SHOWN[shown]()) == shown


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_a_summary_says_the_activation(activation, capsys):
    keras.utils.clear_session()
    heads = [LogitsHead(3, activation), LogitsHead(3, activation)]
    model = keras.Sequential([keras.Input((3,)), *heads, MarkLogits(activation)])
    model.summary()
    printed = capsys.readouterr().out
    for name in (f"{activation}_head", f"{activation}_head_1", f"{activation}_logits"):
        assert f"{name} (" in printed


def test_a_plot_says_the_activation():
    model = keras.Sequential([keras.Input((3,)), LogitsHead(3, "sigmoid")])
    dot = keras.utils.model_to_dot(model, show_layer_activations=True)
    assert "sigmoid" in dot.to_string()
