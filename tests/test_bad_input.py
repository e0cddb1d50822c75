"""Bad input gets an error that names it, shows it, and says what to write instead."""

import ast
import importlib.util
import re
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

import keras_logits
from keras_logits import (
    LogitsHead,
    MarkLogits,
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
    probabilities,
    sigmoid_cross_entropy,
    softmax_cross_entropy,
)
from keras_logits.kernels import contract

BACKEND = keras.config.backend()

X = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")
Z = np.random.default_rng(1).normal(size=(6, 4)).astype("float32")
Y = np.arange(6) % 4
UNITS = np.eye(4)[Y]


def softmax(labels=Y, logits=Z, weight=None, **options):
    return SoftmaxCrossEntropy(True, **options)(labels, logits, weight)


def sigmoid(labels=UNITS, logits=Z, weight=None, **options):
    return SigmoidCrossEntropy(True, **options)(labels, logits, weight)


def of_softmax(**options):
    return softmax_cross_entropy(Y, Z, **options)


def of_sigmoid(**options):
    return sigmoid_cross_entropy(UNITS, Z, **options)


def changed(labels, where, value, dtype=None):
    labels = np.array(labels, dtype or np.asarray(labels).dtype)
    labels[where] = value
    return labels


def embedding(rows=4, width=3):
    return keras.layers.Embedding(rows, width)


def tied(rows=4, width=3, **options):
    return LogitsHead(4, tied_to=embedding(rows, width), **options)(X)


# What is done; then, in the order of the message: the argument, what was received, and
# what to write instead.
CASES = {
    # The head
    "units 0": (lambda: LogitsHead(0), "`units`", "units=0", r"LogitsHead\(10\)"),
    "units below 0": (lambda: LogitsHead(-2), "`units`", "units=-2", r"\w"),
    "units of half": (lambda: LogitsHead(2.5), "`units`", r"units=2\.5", r"\w"),
    "units that are true": (lambda: LogitsHead(True), "`units`", "=True", r"\w"),
    "units as text": (lambda: LogitsHead("10"), "`units`", "units='10'", r"\w"),
    "one class": (
        lambda: LogitsHead(1),
        "`units` must be at least 2 for a softmax",
        "units=1",
        r"LogitsHead\(1, activation='sigmoid'\) with SigmoidCrossEntropy\(\)",
    ),
    "unknown activation": (
        lambda: LogitsHead(3, "relu"),
        "`activation` must be 'softmax'.* or 'sigmoid'",
        "activation='relu'",
        r"activation='sigmoid'\.\n.*: keras\.layers\.Dense",
    ),
    "activation as a function": (
        lambda: LogitsHead(3, keras.activations.softmax),
        "`activation`",
        "activation=<function softmax",
        r"\w",
    ),
    "no activation": (
        lambda: LogitsHead(3, None),
        "`activation`",
        "activation=None",
        r"\w",
    ),
    "activation of a mark": (
        lambda: MarkLogits("linear"),
        "`activation`",
        "activation='linear'",
        r"\w",
    ),
    "activation of probabilities": (
        lambda: probabilities(Z, "tanh"),
        "`activation`",
        "activation='tanh'",
        r"\w",
    ),
    "unknown returns": (
        lambda: LogitsHead(3, returns="scores"),
        "`returns` must be 'logits' or 'probabilities'",
        "returns='scores'",
        "returns='probabilities'",
    ),
    "unknown returns of a call": (
        lambda: LogitsHead(3)(X, returns="both"),
        "`returns`",
        "returns='both'",
        r"\w",
    ),
    "softcap 0": (
        lambda: LogitsHead(3, softcap=0.0),
        "`softcap`",
        r"softcap=0\.0",
        "softcap=None",
    ),
    "temperature below 0": (
        lambda: LogitsHead(3, temperature=-1.0),
        "`temperature`",
        r"temperature=-1\.0",
        r"temperature=1\.0",
    ),
    "temperature NaN": (
        lambda: LogitsHead(3, temperature=np.nan),
        "`temperature`",
        "temperature=nan",
        r"temperature=1\.0",
    ),
    "no temperature": (
        lambda: LogitsHead(3, temperature=None),
        "`temperature`",
        "temperature=None",
        r"\w",
    ),
    "features of unknown size": (
        lambda: LogitsHead(3).build((None, None)),
        "`inputs` must have a known last size",
        r"shape \(None, None\)",
        r"keras\.Input",
    ),
    # Tied weights
    "tied with an initializer": (
        lambda: tied(kernel_initializer="zeros"),
        "`tied_to` excludes",
        "kernel_initializer",
        r"Embedding\(\.\.\., embeddings_initializer=",
    ),
    "tied with a regularizer": (
        lambda: tied(kernel_regularizer="l2"),
        "`tied_to` excludes",
        "kernel_regularizer",
        "embeddings_regularizer",
    ),
    "tied with a constraint": (
        lambda: tied(kernel_constraint="max_norm"),
        "`tied_to` excludes",
        "kernel_constraint",
        "embeddings_constraint",
    ),
    "tied to other rows": (
        lambda: tied(rows=7),
        "`tied_to` must have as many rows as the head has units",
        "7 rows and units=4",
        r"LogitsHead\(7, tied_to=",
    ),
    "tied to another width": (
        lambda: tied(width=5),
        "`tied_to` must be as wide as the features",
        "width 5 and features of width 3",
        r"keras\.layers\.Dense\(5\)",
    ),
    "tied to a Dense": (
        lambda: LogitsHead(4, tied_to=keras.layers.Dense(4)),
        "`tied_to` must be an Embedding",
        "tied_to=<Dense",
        r"tied_to=keras\.layers\.Embedding\(4, width\)",
    ),
    # Options
    "smoothing below 0": (
        lambda: softmax(label_smoothing=-0.1),
        "`label_smoothing` must be a number, at least 0 and at most 1",
        r"label_smoothing=-0\.1",
        r"label_smoothing=0\.0",
    ),
    "smoothing above 1": (
        lambda: sigmoid(label_smoothing=1.5),
        "`label_smoothing`",
        r"label_smoothing=1\.5",
        r"\w",
    ),
    "smoothing of a function": (
        lambda: of_softmax(label_smoothing=2.0),
        "`label_smoothing`",
        r"label_smoothing=2\.0",
        r"\w",
    ),
    "smoothing as text": (
        lambda: of_sigmoid(label_smoothing="0.1"),
        "`label_smoothing`",
        r"label_smoothing='0\.1'",
        r"\w",
    ),
    "smoothing that is true": (
        lambda: softmax(label_smoothing=True),
        "`label_smoothing`",
        "label_smoothing=True",
        r"\w",
    ),
    "gamma below 0": (
        lambda: softmax(focal_gamma=-2),
        "`focal_gamma`",
        "focal_gamma=-2",
        r"focal_gamma=0\.0",
    ),
    "gamma without end": (
        lambda: of_sigmoid(focal_gamma=np.inf),
        "`focal_gamma`",
        "focal_gamma=inf",
        r"\w",
    ),
    "z_loss NaN": (
        lambda: softmax(z_loss=np.nan),
        "`z_loss`",
        "z_loss=nan",
        r"z_loss=0\.0",
    ),
    "z_loss of probabilities": (
        lambda: SoftmaxCrossEntropy(False, z_loss=0.1)(Y, np.full((6, 4), 0.25)),
        "`z_loss` needs logits",
        r"z_loss=0\.1 and from_logits=False",
        r"end the model with LogitsHead\(units\).*\n.*: z_loss=0\.0",
    ),
    "unknown reduction": (
        lambda: SoftmaxCrossEntropy(reduction="average"),
        r"`reduction` must be one of \('mean_with_sample_weight', .*None\)",
        "reduction='average'",
        "reduction='mean_with_sample_weight'",
    ),
    "reduction of tf-keras": (
        lambda: SigmoidCrossEntropy(reduction="auto"),
        "`reduction`",
        "reduction='auto'",
        r"\w",
    ),
    "unknown from_logits": (
        lambda: SoftmaxCrossEntropy("yes"),
        "`from_logits` must be 'auto'",
        "from_logits='yes'",
        "omit from_logits",
    ),
    "no from_logits": (
        lambda: SigmoidCrossEntropy(None),
        "`from_logits`",
        "from_logits=None",
        "omit from_logits",
    ),
    "from_logits 1": (
        lambda: SigmoidCrossEntropy(1),
        "`from_logits`",
        "from_logits=1",
        "omit from_logits",
    ),
    "ignore_index of half": (
        lambda: softmax(ignore_index=-1.5),
        "`ignore_index` must be a 32-bit integer",
        r"ignore_index=-1\.5",
        "ignore_index=-1",
    ),
    "ignore_index as text": (
        lambda: of_sigmoid(ignore_index="pad"),
        "`ignore_index`",
        "ignore_index='pad'",
        r"\w",
    ),
    "ignore_index that no distribution holds": (
        lambda: softmax(UNITS, ignore_index=-1),
        "`ignore_index` must be one of the classes",
        r"ignore_index=-1 and labels of the shape of the logits, \(6, 4\)",
        "sample_weight=0",
    ),
    "axis out of range": (
        lambda: softmax(axis=2),
        "`axis` must be an axis of the logits",
        r"axis=2 and logits of shape \(6, 4\)",
        "axis=-1",
    ),
    "axis of half": (lambda: softmax(axis=0.5), "`axis`", r"axis=0\.5", r"\w"),
    "no axis": (lambda: of_sigmoid(axis=None), "`axis`", "axis=None", r"\w"),
    # Class weights
    "class_weight too short": (
        lambda: softmax(class_weight=[1.0, 2.0]),
        "`class_weight` must have one value for each class",
        "length 2 and logits of 4 classes",
        "a list of 4 numbers, or a dict",
    ),
    "class_weight too long": (
        lambda: of_sigmoid(class_weight=[1.0] * 5),
        "`class_weight`",
        "length 5 and logits of 4 classes",
        "a list of 4 numbers",
    ),
    "class_weight below 0": (
        lambda: SoftmaxCrossEntropy(class_weight=[1.0, -1.0, 1.0, 1.0]),
        "`class_weight` must",
        r"class_weight=\[1\.0, -1\.0",
        r"class_weight=\{0: 2\.0, 1: 0\.0\}.*0\.0 excludes one",
    ),
    "class_weight below 0 in a dict": (
        lambda: SigmoidCrossEntropy(class_weight={2: -1.0}),
        "`class_weight` must",
        r"class_weight=\{2: -1\.0\}",
        r"\w",
    ),
    "class_weight NaN": (
        lambda: of_softmax(class_weight=[1.0, np.nan, 1.0, 1.0]),
        "`class_weight` must",
        r"class_weight=\[1\.0, nan",
        r"\w",
    ),
    "class_weight without end": (
        lambda: of_softmax(class_weight=[1.0, np.inf, 1.0, 1.0]),
        "`class_weight` must",
        r"class_weight=\[1\.0, inf",
        r"\w",
    ),
    "class_weight of a class too many": (
        lambda: softmax(class_weight={0: 1.0, 4: 2.0}),
        "`class_weight` names classes that the logits do not have",
        r"classes \[4\] and logits of 4 classes",
        "keys from 0 to 3",
    ),
    "class_weight by name": (
        lambda: SoftmaxCrossEntropy(class_weight={"cat": 2.0}),
        "`class_weight`",
        r"class_weight=\{'cat': 2\.0\}",
        r"\w",
    ),
    "class_weight of half a class": (
        lambda: SoftmaxCrossEntropy(class_weight={1.5: 2.0}),
        "`class_weight`",
        r"class_weight=\{1\.5: 2\.0\}",
        r"\w",
    ),
    "class_weight as a number": (
        lambda: SoftmaxCrossEntropy(class_weight=2.0),
        "`class_weight`",
        r"class_weight=2\.0",
        r"\w",
    ),
    "class_weight as text": (
        lambda: SoftmaxCrossEntropy(class_weight="balanced"),
        "`class_weight`",
        "class_weight='balanced'",
        r"\w",
    ),
    "class_weight without a value": (
        lambda: of_softmax(class_weight=[1.0, None, 1.0, 1.0]),
        "`class_weight`",
        r"class_weight=\[1\.0, None",
        r"\w",
    ),
    "class_weight of a matrix": (
        lambda: of_softmax(class_weight=[[1.0, 2.0], [3.0, 4.0]]),
        "`class_weight`",
        r"class_weight=\[\[1\.0",
        r"\w",
    ),
    "pos_weight below 0": (
        lambda: sigmoid(pos_weight=-3.0),
        "`pos_weight`",
        r"pos_weight=-3\.0",
        r"\w",
    ),
    "pos_weight below 0 for a unit": (
        lambda: sigmoid(pos_weight=[1.0, 1.0, 1.0, -3.0]),
        "`pos_weight`",
        r"pos_weight=\[1\.0",
        r"\w",
    ),
    "pos_weight too short": (
        lambda: of_sigmoid(pos_weight=[1.0, 2.0]),
        "`pos_weight` must have one value for each",
        "length 2 and logits of 4",
        "a list of 4 numbers",
    ),
    "pos_weight as text": (
        lambda: of_sigmoid(pos_weight="balanced"),
        "`pos_weight`",
        "pos_weight='balanced'",
        r"\w",
    ),
    # Shapes
    "labels of other classes": (
        lambda: softmax(np.eye(5)[Y]),
        r"`labels` must be class ids.*\(6,\).*or distributions.*\(6, 4\)",
        r"labels of shape \(6, 5\) and logits of shape \(6, 4\)",
        r"LogitsHead\(5\), if there are that many classes",
    ),
    "labels of other rows": (
        lambda: softmax(Y[:5]),
        "`labels`",
        r"labels of shape \(5,\) and logits of shape \(6, 4\)",
        r"labels of shape \(6,\), or axis=",
    ),
    "labels without an axis": (
        lambda: softmax_cross_entropy(1, Z),
        "`labels`",
        r"labels of shape \(\) and logits of shape \(6, 4\)",
        r"labels of shape \(6,\)",
    ),
    "labels of rank 3": (
        lambda: softmax(Y[:, None, None]),
        "`labels`",
        r"labels of shape \(6, 1, 1\) and logits of shape \(6, 4\)",
        r"labels of shape \(6,\)",
    ),
    "class ids for a sigmoid": (
        lambda: sigmoid(Y),
        "`labels` must have the shape of the logits",
        r"labels of shape \(6,\) and logits of shape \(6, 4\)",
        r"SoftmaxCrossEntropy\(\) and LogitsHead",
    ),
    "a column of labels for four units": (
        lambda: sigmoid(UNITS[:, :1]),
        "`labels`",
        r"labels of shape \(6, 1\) and logits of shape \(6, 4\)",
        r"\w",
    ),
    "a row of labels for all": (
        lambda: sigmoid(UNITS[:1]),
        "`labels`",
        r"labels of shape \(1, 4\) and logits of shape \(6, 4\)",
        r"\w",
    ),
    "logits without an axis": (
        lambda: softmax_cross_entropy(0, 1.0),
        "`logits` must have at least one axis",
        r"shape \(\)",
        r"keras\.ops\.reshape",
    ),
    "sample_weight of other rows": (
        lambda: softmax(weight=np.ones(5)),
        "`sample_weight` must have the shape of the losses",
        r"sample_weight of shape \(5,\) and losses of shape \(6,\)",
        r"sample_weight of shape \(6,\)",
    ),
    "sample_weight of the logits' shape": (
        lambda: softmax(weight=np.ones((6, 4))),
        "`sample_weight`",
        r"sample_weight of shape \(6, 4\) and losses of shape \(6,\)",
        r"sample_weight of shape \(6,\)",
    ),
    "sample_weight of other units": (
        lambda: sigmoid(weight=np.ones((6, 3))),
        "`sample_weight`",
        r"sample_weight of shape \(6, 3\) and losses of shape \(6,\)",
        r"sample_weight of shape \(6,\)",
    ),
    "sample_weight along the wrong axis": (
        lambda: SoftmaxCrossEntropy(True)(
            np.zeros((2, 3), "int32"), np.zeros((2, 3, 4)), np.ones(3)
        ),
        "`sample_weight`",
        r"sample_weight of shape \(3,\) and losses of shape \(2, 3\)",
        r"sample_weight of shape \(2,\), to weigh whole rows",
    ),
    # Options that float32 or int32 cannot hold, and weights that are no list
    "class_weight as a set": (
        lambda: of_softmax(class_weight={1.0, 2.0, 3.0, 4.0}),
        "`class_weight`",
        r"class_weight=\{1\.0, ",
        r"\w",
    ),
    "class_weight as a generator": (
        lambda: of_softmax(class_weight=(1.0 for _ in range(4))),
        "`class_weight`",
        "class_weight=<generator",
        r"\w",
    ),
    "class_weight as numbers in text": (
        lambda: of_softmax(class_weight=["1", "2", "3", "4"]),
        "`class_weight`",
        r"class_weight=\['1', ",
        r"\w",
    ),
    "class_weight of each row": (
        lambda: of_softmax(class_weight=np.ones((6, 4))),
        "`class_weight`",
        r"class_weight=\[\[1\.0, ",
        r"\w",
    ),
    "class_weight beyond float32": (
        lambda: of_softmax(class_weight=[1e39, 1.0, 1.0, 10**400]),
        "`class_weight`",
        r"class_weight=\[1e\+39, ",
        r"\w",
    ),
    "pos_weight beyond float32": (
        lambda: of_sigmoid(pos_weight=np.array(1e39)),
        "`pos_weight` must be a number, at least 0 and finite",
        r"pos_weight=1e\+39",
        r"pos_weight=0\.0",
    ),
    "ignore_index beyond int32": (
        lambda: of_softmax(ignore_index=10**30),
        "`ignore_index` must be a 32-bit integer",
        "ignore_index=1000000000000000000000000000000",
        "ignore_index=-1",
    ),
    "focal_gamma beyond all floats": (
        lambda: of_softmax(focal_gamma=10**5000),
        "`focal_gamma`",
        "a whole number of thousands of digits",
        r"focal_gamma=0\.0",
    ),
    "softcap beyond all floats": (
        lambda: LogitsHead(4, softcap=10**400),
        "`softcap`",
        r"softcap=10+\.\.\. \(401 characters\)",
        "softcap=None",
    ),
    "softcap that is 0 in float32": (
        lambda: LogitsHead(4, softcap=1e-46),
        "`softcap`",
        "softcap=1e-46",
        "softcap=None",
    ),
    "temperature beyond float32": (
        lambda: LogitsHead(4, temperature=1e39),
        "`temperature`",
        r"temperature=1e\+39",
        r"temperature=1\.0",
    ),
    "returns as an array": (
        lambda: LogitsHead(4, returns=np.array(["logits", "probabilities"])),
        "`returns`",
        "returns=array",
        r"\w",
    ),
    "reports as arrays": (
        lambda: LogitsHead(4, reports=[np.array(["accuracy", "entropy"])]),
        "`reports`",
        r"reports=\[array",
        r"\w",
    ),
    "activation as an array": (
        lambda: LogitsHead(4, np.array(["softmax", "sigmoid"])),
        "`activation`",
        "activation=array",
        r"\w",
    ),
    "reduction as an array": (
        lambda: SoftmaxCrossEntropy(reduction=np.array(["sum", "mean"])),
        "`reduction`",
        "reduction=array",
        r"\w",
    ),
    "an axis that probabilities do not have": (
        lambda: probabilities(Z, axis=2),
        "`axis` must be an axis of the logits",
        r"axis=2 and logits of shape \(6, 4\)",
        "axis=-1",
    ),
    "values that are no probabilities": (
        lambda: SoftmaxCrossEntropy(False)([0], np.array([[5.0, -3.0, 2.0]])),
        "`y_pred` must hold probabilities from 0 to 1",
        "3 of 3 scores outside that range, from -3 to 5",
        r"LogitsHead\(units\).*\n.*: from_logits=True",
    ),
    # Values, of which eager code can say something
    "class ids of half": (
        lambda: softmax(Y + 0.5),
        "`labels` must be class ids from 0 to 3",
        r"6 bad of 6 labels, with values 0\.5, 1\.5, 2\.5, 3\.5",
        r"labels\.astype\('int32'\)",
    ),
    "class ids that start at 1": (
        lambda: softmax(Y + 1),
        "`labels` must be class ids from 0 to 3, because the logits have 4 classes",
        "1 bad of 6 labels, with values 4",
        r"labels - 1\. The labels seem to start at 1",
    ),
    "a class that does not exist": (
        lambda: softmax(changed(Y, 0, 9)),
        "`labels`",
        "1 bad of 6 labels, with values 9",
        r"ignore_index=9 .*, if 9 .*\nOr LogitsHead\(10\), if there are 10",
    ),
    "class ids far away": (
        lambda: of_many(10 + np.arange(6)),
        "`labels`",
        r"6 bad of 6 labels, with values 10, 11, 12, 13, 14, \.\.\.",
        r"LogitsHead\(16\)",
    ),
    "padding by -1": (
        lambda: softmax(changed(Y, [1, 4], -1)),
        "`labels`",
        "2 bad of 6 labels, with values -1",
        "ignore_index=-1 in the loss, if -1 marks padding",
    ),
    "padding by -100": (
        lambda: softmax(changed(Y, 2, -100)),
        "`labels`",
        "1 bad of 6 labels, with values -100",
        "ignore_index=-100 in the loss, if -100 marks padding",
    ),
    "padding in a function": (
        lambda: of_many(changed(Y, 2, -1)),
        "`labels`",
        "1 bad of 6 labels, with values -1",
        "ignore_index=-1",
    ),
    "class ids NaN": (
        lambda: softmax(changed(Y, 2, np.nan, float)),
        "`labels`",
        "1 bad of 6 labels, with values nan",
        "sample_weight=0",
    ),
    "a distribution below 0": (
        lambda: softmax(changed(UNITS, (0, 1), -0.5)),
        "`labels` of the logits' shape must be distributions",
        r"1 bad of 24 labels, with values -0\.5",
        "sample_weight=0",
    ),
    "a distribution NaN": (
        lambda: softmax(changed(UNITS, (0, 1), np.nan)),
        "`labels` of the logits' shape must be distributions",
        "1 bad of 24 labels, with values nan",
        "sample_weight=0",
    ),
    "units of 2": (
        lambda: sigmoid(2 * UNITS),
        "`labels` of a sigmoid must be 0 or 1",
        "6 bad of 24 labels, with values 2",
        r"labels\.astype\('bool'\)",
    ),
    "units of -1": (
        lambda: sigmoid(changed(UNITS, (0, 1), -1)),
        "`labels` of a sigmoid",
        "1 bad of 24 labels, with values -1",
        "ignore_index=-1 in the loss, if -1 is an unknown label",
    ),
    "units NaN": (
        lambda: sigmoid(changed(UNITS, (0, 1), np.nan)),
        "`labels` of a sigmoid",
        "1 bad of 24 labels, with values nan",
        "-1 for an unknown label, and ignore_index=-1",
    ),
    "a weight below 0 under a mean": (
        lambda: softmax(weight=changed(np.ones(6), [0, 1], [-2.0, -1.0])),
        "`sample_weight` must not be negative",
        "2 negative weights, the lowest -2",
        "reduction='sum_over_batch_size'",
    ),
    "a weight NaN": (
        lambda: sigmoid(weight=changed(np.ones(6), 0, np.nan)),
        "`sample_weight` must not be NaN",
        "1 NaN weights",
        r"sample_weight=0\.0 for positions that should not count",
    ),
    # Labels that are no numbers
    "names for labels": (
        lambda: softmax(np.array(["cat", "dog", "owl"] * 2)),
        "`labels` must be numbers",
        "<U3",
        r"np\.unique\(labels, return_inverse=True\)",
    ),
    "complex labels": (
        lambda: softmax(1j * Y),
        "`labels` must be numbers",
        "complex128",
        r"\w",
    ),
    "no labels": (lambda: softmax(None), "`labels` must be numbers", "object", r"\w"),
    "labels of unlike lengths": (
        lambda: sigmoid([[1], [0, 1]]),
        "`labels` must be numbers",
        "lists of unlike lengths",
        r"\w",
    ),
    "weights for the two sides of one unit": (
        lambda: sigmoid(np.zeros((6, 1)), Z[:, :1], class_weight={0: 1.0, 1: 5.0}),
        "`class_weight`",
        "1 classes",
        "pos_weight=",
    ),
    # The mark
    "an unmarked output": (
        lambda: SoftmaxCrossEntropy()(Y, Z),
        "`y_pred` must be marked as logits",
        r"an unmarked tensor of shape \(6, 4\)",
        r"end the model with LogitsHead",
    ),
    "a mark of another activation": (
        lambda: SoftmaxCrossEntropy()(Y, MarkLogits("sigmoid", name="m")(Z)),
        "`y_pred` must be logits of a softmax",
        r"Mark\(logits of a sigmoid, from 'm'\)",
        r"loss=SigmoidCrossEntropy\(\)",
    ),
}


def of_many(labels):
    return softmax_cross_entropy(labels, Z)


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_named_and_shown_with_a_remedy(case):
    call, argument, received, remedy = CASES[case]
    with pytest.raises(ValueError, match="Received") as caught:
        call()
    message = str(caught.value)
    expected = rf"(?m)^{argument}.*\nReceived: .*{received}.*\nFix: .*{remedy}"
    assert re.search(expected, message), f"{message}\ndoes not match\n{expected}"


# Everything that may be given is let pass

GOOD = {
    "numbers of NumPy": lambda: softmax(
        label_smoothing=np.float32(0.1),
        focal_gamma=np.int64(2),
        ignore_index=np.int64(-1),
        axis=np.int64(1),
    ),
    "class_weight of NumPy": lambda: softmax(class_weight=np.ones(4, "float32")),
    "class_weight by keys of NumPy": lambda: softmax(class_weight={np.int64(1): 2}),
    "pos_weight of NumPy": lambda: sigmoid(pos_weight=np.float32(2)),
    "pos_weight of rank 0": lambda: sigmoid(pos_weight=np.array(2.0)),
    "pos_weight as a tensor": lambda: sigmoid(pos_weight=ops.convert_to_tensor(2.0)),
    "class_weight as a tensor": lambda: softmax(class_weight=ops.ones(4)),
    "a weight for each label": lambda: sigmoid(weight=np.ones((6, 4))),
    "pos_weights of NumPy": lambda: sigmoid(pos_weight=np.ones(4, "float32")),
    "units of NumPy": lambda: softmax(logits=LogitsHead(np.int64(4))(X)),
    "whole floats": lambda: softmax(Y.astype("float64")),
    "unsigned bytes": lambda: softmax(Y.astype("uint8")),
    "a list of tensors": lambda: softmax([*map(ops.convert_to_tensor, Y)]),
    "ids of 64 bits": lambda: softmax(Y.astype("uint64")),
    "smoothing 1": lambda: softmax(label_smoothing=1.0),
    "bad labels of weight 0": lambda: softmax(
        changed(Y, 0, 99), weight=changed(np.ones(6), 0, 0.0)
    ),
    "weights below 0 under a sum": lambda: softmax(weight=-np.ones(6), reduction="sum"),
}


@pytest.mark.parametrize("case", GOOD)
def test_what_is_no_mistake_is_let_pass(case):
    assert np.isfinite(ops.convert_to_numpy(GOOD[case]()))


# In training

BAD_FITS = {
    "labels": ({}, {"y": np.zeros((6, 7))}),
    "class weights": ({"class_weight": [1.0]}, {}),
    "sample weights": ({}, {"sample_weight": np.ones((6, 2))}),
    "z_loss": ({"from_logits": False, "z_loss": 0.1}, {}),
}


@pytest.mark.parametrize("case", BAD_FITS)
def test_bad_input_is_refused_before_any_training_step(case):
    options, given = BAD_FITS[case]
    last = keras.layers.Dense(4) if "from_logits" in options else LogitsHead(4)
    model = keras.Sequential([keras.Input((3,)), last])
    model.compile(keras.optimizers.SGD(1.0), loss=SoftmaxCrossEntropy(**options))
    before = model.get_weights()
    with pytest.raises(ValueError, match="Received"):
        model.fit(**{"x": X, "y": Y, "verbose": 0, **given})
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(other, one)


@pytest.mark.skipif(BACKEND == "jax", reason="Keras takes the weights from the model")
@pytest.mark.parametrize("labels", [Y + 1, Y - 1, Y + 0.5])
def test_an_eager_step_with_bad_labels_changes_nothing(labels):
    model = keras.Sequential([keras.Input((3,)), LogitsHead(4)])
    loss = SoftmaxCrossEntropy()
    model.compile(keras.optimizers.SGD(1.0), loss=loss, run_eagerly=True)
    before = model.get_weights()
    with pytest.raises(ValueError, match="must be class ids from 0 to 3"):
        model.train_on_batch(X, labels)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(other, one)


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_an_unmarked_model_is_refused_before_any_training_step(run_eagerly):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    loss = SoftmaxCrossEntropy()
    model.compile(keras.optimizers.SGD(1.0), loss=loss, run_eagerly=run_eagerly)
    kernel = model.layers[-1].kernel.value
    before = ops.convert_to_numpy(kernel).copy()
    with pytest.raises(ValueError, match="must be marked as logits"):
        model.fit(X, Y, verbose=0)
    np.testing.assert_array_equal(ops.convert_to_numpy(kernel), before)


# Two Keras in one program


class Keras2:
    """tf-keras with the package's classes for it, or None where it cannot run."""

    if BACKEND == "tensorflow" and importlib.util.find_spec("tf_keras"):
        import tf_keras as keras

        from keras_logits.tf_keras import (
            LogitsHead,
            MarkLogits,
            SigmoidCrossEntropy,
            SoftmaxCrossEntropy,
        )


class Keras3:
    keras = keras
    LogitsHead, MarkLogits = LogitsHead, MarkLogits
    SigmoidCrossEntropy, SoftmaxCrossEntropy = SigmoidCrossEntropy, SoftmaxCrossEntropy


MIXED = {
    "head on inputs": (
        lambda my, your: my.LogitsHead(4)(your.keras.Input((3,))),
        "`inputs`",
        "LogitsHead",
    ),
    "mark on inputs": (
        lambda my, your: my.MarkLogits()(your.keras.Input((3,))),
        "`inputs`",
        "MarkLogits",
    ),
    "head tied": (
        lambda my, your: my.LogitsHead(4, tied_to=your.keras.layers.Embedding(4, 3)),
        "`tied_to`",
        "LogitsHead",
    ),
    "head with an initializer": (
        lambda my, your: my.LogitsHead(
            4, kernel_initializer=your.keras.initializers.Zeros()
        ),
        "`kernel_initializer`",
        "LogitsHead",
    ),
    "softmax loss on a head": (
        lambda my, your: called(my.SoftmaxCrossEntropy(), Y, your.LogitsHead(4), X),
        "`y_pred`",
        "SoftmaxCrossEntropy",
    ),
    "sigmoid loss on a mark": (
        lambda my, your: called(
            my.SigmoidCrossEntropy(), UNITS, your.MarkLogits("sigmoid"), Z
        ),
        "`y_pred`",
        "SigmoidCrossEntropy",
    ),
    "loss in training": (
        lambda my, your: fitted(your, my.SoftmaxCrossEntropy()),
        "`y_pred`",
        "SoftmaxCrossEntropy",
    ),
}


def called(loss, labels, last, inputs):
    return loss(labels, last(inputs))


def fitted(of, loss):
    model = of.keras.Sequential([of.keras.layers.Dense(5), of.LogitsHead(4)])
    model.compile("sgd", loss=loss)
    model.fit(X, Y, verbose=0)


@pytest.mark.skipif(not hasattr(Keras2, "keras"), reason="needs tf-keras")
@pytest.mark.parametrize("mine", [2, 3])
@pytest.mark.parametrize("case", MIXED)
def test_objects_of_the_other_keras_are_refused(case, mine):
    call, argument, name = MIXED[case]
    names = {2: r"tf-keras \(Keras 2\)", 3: "Keras 3"}
    modules = {2: r"keras_logits\.tf_keras", 3: "keras_logits"}
    classes = {2: Keras2, 3: Keras3}
    expected = (  # TensorFlow indents the lines of an error in a graph
        rf"{argument} must belong to {names[mine]}, as this {name} does\.\n"
        rf" *Received: .*, of {names[5 - mine]}\n"
        rf" *Fix: from {modules[5 - mine]} import {name}"
    )
    with pytest.raises(TypeError, match=expected):
        call(classes[mine], classes[5 - mine])


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow is what it needs")
def test_tf_keras_is_refused_on_another_backend():
    expected = (
        rf"needs the TensorFlow backend\.\nReceived: KERAS_BACKEND={BACKEND}\n"
        "Fix: set KERAS_BACKEND=tensorflow"
    )
    pytest.importorskip("tf_keras")
    with pytest.raises(ImportError, match=expected):
        importlib.import_module("keras_logits.tf_keras")


# All messages of the package

PACKAGE = Path(keras_logits.__file__).parent


def raises_of(path):
    tree = ast.parse(path.read_text("utf-8"))
    functions = {f.name: f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise):
            yield f"{path.name}:{node.lineno}", words(node, functions)


def words(node, functions, depth=2):
    """The text that a node may print, that of the functions it calls included."""
    if node.__class__ is ast.Raise and node.exc is None:
        return ""
    found = []
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            found.append(part.value)
        called = getattr(getattr(part, "func", None), "id", None)
        if called in functions and depth:
            found.append(words(functions[called], functions, depth - 1))
        if isinstance(part, ast.Name) and part.id.startswith("NO_"):
            found.append(getattr(contract, part.id))
    return " ".join(found)


MESSAGES = [
    pytest.param(text, id=f"{path.parent.name}/{place}")
    for path in sorted(PACKAGE.rglob("*.py"))
    for place, text in raises_of(path)
]


def test_the_messages_were_found():
    assert len(MESSAGES) > 30


@pytest.mark.parametrize("text", MESSAGES)
def test_every_error_says_what_was_received_and_what_to_write(text):
    assert "`" in text, "names no argument"
    assert "\nReceived: " in text
    assert "\nFix: " in text, "says nothing of what to write instead"
