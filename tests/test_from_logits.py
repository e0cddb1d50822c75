"""What a loss takes `y_pred` for: every cell of the table of `from_logits`.

Marks decide. Where there is none, the user says it, and what is visibly something else
is refused. Logits are never guessed back from a tensor that somebody else made.
"""

import warnings

import keras
import numpy as np
import pytest
from keras import ops

from keras_logits import (
    LogitsHead,
    MarkLogits,
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
    probabilities,
    sigmoid_cross_entropy,
    softmax_cross_entropy,
)

BACKEND = keras.config.backend()
SAYS = ["auto", True, False]
# Far enough from 0 that the probabilities are exactly 0 and 1: whoever computes the
# loss from these, and not from the logits, does not get the loss.
LOGITS = np.array([[200.0, -200.0, 0.0], [-150.0, 30.0, 20.0]], "float32")
CHANCES = np.array([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]], "float32")


class Family:
    """One of the two losses with what belongs to it."""

    def __init__(self, activation, loss, function, labels, other, other_loss):
        self.activation, self.loss = activation, loss
        self.function, self.labels = function, labels
        self.other, self.other_loss = other, other_loss

    def of_logits(self):
        values = self.function(self.labels, LOGITS)
        return ops.convert_to_numpy(ops.mean(values))

    def of_chances(self):
        p, hot = CHANCES, np.eye(3)[[1, 1]]
        if self.activation == "softmax":
            return np.mean(-np.log(p[:, 1]))
        return np.mean(np.where(hot == 1, -np.log(p), -np.log1p(-p)))


FAMILIES = [
    Family(
        "softmax",
        SoftmaxCrossEntropy,
        softmax_cross_entropy,
        np.array([1, 1]),
        "sigmoid",
        r"SigmoidCrossEntropy\(\)",
    ),
    Family(
        "sigmoid",
        SigmoidCrossEntropy,
        sigmoid_cross_entropy,
        np.eye(3, dtype="int32")[[1, 1]],
        "softmax",
        r"SoftmaxCrossEntropy\(\)",
    ),
]
families = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.activation)


def head_of(activation, **options):
    """A head that gives the logits above for the identity."""
    head = LogitsHead(3, activation, use_bias=False, name="head", **options)
    head.build((None, 2))
    head.kernel.assign(LOGITS)
    return head


def by_head(activation):
    return head_of(activation)(np.eye(2, dtype="float32"))


def by_marklogits(activation):
    return MarkLogits(activation, name="head")(LOGITS)


def by_probabilities(activation):
    head = head_of(activation, returns="probabilities")
    return head(np.eye(2, dtype="float32"))


def value(loss, family, y_pred):
    return float(ops.convert_to_numpy(loss(family.labels, y_pred)))


# Marked


@families
@pytest.mark.parametrize("made", [by_head, by_marklogits])
@pytest.mark.parametrize("says", ["auto", True])
def test_marked_logits_are_used(family, made, says):
    found = value(family.loss(says), family, made(family.activation))
    np.testing.assert_allclose(found, family.of_logits(), rtol=1e-6)


@families
@pytest.mark.parametrize("made", [by_head, by_marklogits])
def test_marked_logits_are_no_probabilities(family, made):
    expected = (
        r"`from_logits=False` is wrong here\. `y_pred` holds logits\.\n"
        rf"Received: Mark\(logits of a {family.activation}, from 'head'\)\n"
        rf"Fix: {family.loss.__name__}\(\), without from_logits\."
    )
    with pytest.raises(ValueError, match=expected):
        value(family.loss(False), family, made(family.activation))


@families
@pytest.mark.parametrize("says", ["auto", False])
def test_the_logits_behind_marked_probabilities_are_used(family, says):
    y_pred = by_probabilities(family.activation)
    chances = probabilities(LOGITS, family.activation)
    np.testing.assert_array_equal(*map(ops.convert_to_numpy, (y_pred, chances)))
    found = value(family.loss(says), family, y_pred)
    np.testing.assert_allclose(found, family.of_logits(), rtol=1e-6)


@families
def test_marked_probabilities_are_no_logits(family):
    expected = (
        r"`from_logits=True` is wrong here\. `y_pred` holds probabilities\.\n"
        rf"Received: Mark\(probabilities of a {family.activation}, from 'head'\)\n"
        rf"Fix: {family.loss.__name__}\(\), without from_logits\."
    )
    with pytest.raises(ValueError, match=expected):
        value(family.loss(True), family, by_probabilities(family.activation))


@families
@pytest.mark.parametrize("says", SAYS)
@pytest.mark.parametrize("made", [by_head, by_marklogits, by_probabilities])
def test_a_mark_of_the_other_activation_is_refused(family, made, says):
    expected = (
        rf"`y_pred` must be logits of a {family.activation}\.\n"
        rf"Received: Mark\(\w+ of a {family.other}, from 'head'\)\n"
        rf"Fix: loss={family.other_loss}, to match the model\.\n"
        rf"Or LogitsHead\(units, activation='{family.activation}'\)"
    )
    with pytest.raises(ValueError, match=expected):
        value(family.loss(says), family, made(family.other))


# Unmarked


@families
def test_an_unmarked_tensor_is_refused_until_somebody_says_what_it_is(family):
    name = family.loss.__name__
    expected = (
        r"`y_pred` must be marked as logits.*\n"
        r"Received: an unmarked tensor of shape \(2, 3\)\n"
        rf"Fix: .* LogitsHead\(units, activation='{family.activation}'\)\.\n"
        rf".* MarkLogits\('{family.activation}'\) after it\.\n"
        rf".*: {name}\(from_logits=True\) for logits, from_logits=False for prob"
    )
    with pytest.raises(ValueError, match=expected):
        value(family.loss(), family, LOGITS)


@families
def test_an_unmarked_tensor_is_taken_as_logits_if_the_user_says_so(family):
    with warnings.catch_warnings(action="error", category=UserWarning):
        found = value(family.loss(True), family, LOGITS)
    np.testing.assert_allclose(found, family.of_logits(), rtol=1e-6)


@families
def test_an_unmarked_tensor_is_taken_as_probabilities_if_the_user_says_so(family):
    with warnings.catch_warnings(action="error", category=UserWarning):
        found = value(family.loss(False), family, CHANCES)
    np.testing.assert_allclose(found, family.of_chances(), rtol=1e-6)


# Unmarked, but visibly probabilities

SEEN = {
    "softmax": r"all rows are in \[0, 1\] and sum to 1",
    "sigmoid": r"all values are in \[0, 1\]",
}


@families
def test_values_that_look_like_probabilities_are_refused_with_the_evidence(family):
    expected = (
        r"unmarked tensor of shape \(2, 3\), which looks like probabilities: "
        rf"{SEEN[family.activation]}\nFix: end the model with LogitsHead"
    )
    with pytest.raises(ValueError, match=expected):
        value(family.loss(), family, CHANCES)


@families
def test_values_that_look_like_probabilities_are_taken_as_logits_with_a_warning(family):
    name = family.loss.__name__
    expected = (
        r"`from_logits=True` seems wrong here\. `y_pred` looks like probabilities: "
        rf"{SEEN[family.activation]}\.\n.*\nFix: LogitsHead\(units, "
        rf"activation='{family.activation}'\).*{name}\(\).*or from_logits=False"
    )
    with pytest.warns(UserWarning, match=expected):
        found = value(family.loss(True), family, CHANCES)
    plain = ops.convert_to_numpy(ops.mean(family.function(family.labels, CHANCES)))
    np.testing.assert_allclose(found, plain, rtol=1e-6)


@families
def test_a_loss_warns_once(family):
    loss = family.loss(True)
    with pytest.warns(UserWarning, match="looks like probabilities"):
        value(loss, family, CHANCES)
    with warnings.catch_warnings(action="error", category=UserWarning):
        value(loss, family, CHANCES)
    with pytest.warns(UserWarning, match="looks like probabilities"):
        value(family.loss(True), family, CHANCES)


@families
def test_a_warning_points_at_the_line_that_called_the_loss(family):
    with pytest.warns(UserWarning, match="looks like probabilities") as caught:
        family.loss(True)(family.labels, CHANCES)
    ours = [warning for warning in caught if warning.category is UserWarning]
    assert [warning.filename for warning in ours] == [__file__]


@pytest.mark.parametrize(
    "logits",
    [
        CHANCES - 0.01,
        CHANCES + 0.01,
        np.full((2, 3), np.nan, "float32"),
        np.zeros((0, 3), "float32"),
    ],
    ids=["below 0", "sums above 1", "NaN", "no rows"],
)
def test_values_that_no_softmax_gives_are_taken_as_logits_in_silence(logits):
    logits = np.where(logits < 0.12, -1.0, logits).astype("float32")
    with warnings.catch_warnings(action="error", category=UserWarning):
        SoftmaxCrossEntropy(True)(np.zeros(len(logits), "int32"), logits)


def test_probabilities_are_seen_along_the_axis_of_the_classes():
    across = np.full((2, 5, 1), 0.2, "float32")
    with pytest.warns(UserWarning, match="sum to 1"):
        SoftmaxCrossEntropy(True, axis=1)(np.ones((2, 1), "int32"), across)


@families
@pytest.mark.parametrize("says", ["auto", True])
@pytest.mark.parametrize("made", [by_head, lambda _: LOGITS / 100], ids=["head", "no"])
def test_the_output_of_keras_own_activation_is_refused(family, made, says):
    """Keras notes on the tensor what it was made from."""
    activation = family.activation
    y_pred = keras.layers.Activation(activation)(made(activation))
    expected = (
        r"Received: .*output of a Keras softmax or sigmoid \(probabilities\)\n"
        r"Fix: remove that softmax or sigmoid if a LogitsHead comes before it\. "
        rf"Otherwise, replace it with LogitsHead\(units, activation='{activation}'\)"
    )
    with pytest.raises(ValueError, match=expected):
        value(family.loss(says), family, y_pred)


@families
def test_the_output_of_keras_own_activation_is_taken_as_probabilities(family):
    y_pred = keras.layers.Activation(family.activation)(np.log(CHANCES))
    p = ops.convert_to_numpy(y_pred)
    found = value(family.loss(False), family, y_pred)
    expected = value(family.loss(False), family, p)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@families
@pytest.mark.skipif(BACKEND != "tensorflow", reason="only its graphs keep that note")
@pytest.mark.parametrize("says", ["auto", True])
def test_a_graph_sees_the_producer_without_any_values(family, says):
    import tensorflow as tf

    loss = family.loss(says)

    @tf.function
    def step(x):
        return loss(family.labels, keras.layers.Activation(family.activation)(x))

    with pytest.raises(ValueError, match="output of a Keras softmax or sigmoid"):
        step.get_concrete_function(LOGITS)


@pytest.mark.skipif(BACKEND == "torch", reason="torch always has values")
def test_a_compiled_step_has_no_values_to_warn_of():
    loss = SoftmaxCrossEntropy(True)

    def step(y_pred):
        return loss(np.array([1, 1]), y_pred)

    with warnings.catch_warnings(action="error", category=UserWarning):
        if BACKEND == "tensorflow":
            import tensorflow as tf

            tf.function(step).get_concrete_function(CHANCES)
        else:
            import jax

            jax.make_jaxpr(step)(CHANCES)
    with pytest.warns(UserWarning, match="looks like probabilities"):
        step(CHANCES)  # what was not seen then is looked at now
