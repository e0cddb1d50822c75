"""Reports of a head: the stock metrics' numbers, from the pass that the loss makes.

Heads are fused or not, and nobody sees a difference.
"""

import re

import keras
import numpy as np
import pytest
from keras import ops
from keras.layers import Dense, Embedding
from keras.metrics import (
    CategoricalAccuracy,
    SparseCategoricalAccuracy,
    SparseCategoricalCrossentropy,
    SparseTopKCategoricalAccuracy,
)

from keras_logits import LogitsHead, SigmoidCrossEntropy, SoftmaxCrossEntropy

pytestmark = pytest.mark.compiled_fast
BACKEND = keras.config.backend()
MODES = {
    "tensorflow": {
        "eager": {"run_eagerly": True},
        "graph": {"jit_compile": False},
        "jit": {"jit_compile": True},
    },
    "jax": {"eager": {"run_eagerly": True}, "jit": {}},
}.get(BACKEND, {"eager": {}})
COMPILED = {name: mode for name, mode in MODES.items() if name != "eager"}
QUICK = {"jit_compile": False} if BACKEND == "tensorflow" else {}
EPS = np.finfo("float32").eps
CLASSES = 9
ALL = (
    "accuracy",
    "top_5_accuracy",
    "cross_entropy",
    "perplexity",
    "entropy",
    "invalid_labels",
)
OF_UNITS = ("accuracy", "cross_entropy", "entropy", "invalid_labels")

# Of 13 rows batches of 5 are of two sizes, and each is compiled. Where that is not what
# is shown, 12 rows are two batches of `HALF`.
HALF = 6

draw = np.random.default_rng(5)
X = draw.normal(size=(13, 6)).astype("float32")
IDS = draw.integers(0, CLASSES, 13)
UNITS = draw.integers(0, 2, (13, 3)).astype("float32")
WEIGHTS = draw.uniform(0.0, 3.0, 13).astype("float32")
WORDS = draw.integers(1, 7, (13, 5))
WORDS[::2, 3:] = 0  # padding
NEXT = draw.integers(0, CLASSES, WORDS.shape)

both = pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
modes = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(3)


def head_of(reports=ALL, units=CLASSES, *args, **kwargs):
    # A wide draw, so that figures are not those of a uniform distribution.
    drawn = keras.initializers.RandomNormal(stddev=1.0)
    return LogitsHead(
        units, *args, reports=list(reports), kernel_initializer=drawn, **kwargs
    )


def model_of(*layers, loss=None, rate=0.5, **options):
    model = keras.Sequential([keras.Input(X.shape[1:]), *layers])
    loss = loss or SoftmaxCrossEntropy()
    model.compile(keras.optimizers.SGD(rate), loss, **(options or QUICK))
    return model


def text_model(head, **options):
    layers = [keras.Input((5,), dtype="int32"), Embedding(7, 6, mask_zero=True), head]
    model = keras.Sequential(layers)
    model.layers[0].set_weights([draw.normal(size=(7, 6))])
    model.compile(keras.optimizers.SGD(0.5), **options)
    return model


def reported(logs, head, names=ALL, prefix=""):
    return {name: logs[f"{prefix}{head.name}_{name}"] for name in names}


def evaluated(model, x, y, **kwargs):
    return model.evaluate(x, y, verbose=0, return_dict=True, **kwargs)


def logits_of(model, x):
    return ops.convert_to_numpy(model(x))


def log_softmax(z):
    z = np.asarray(z, "float64")
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def expected(logits, ids, weights):
    """The figures of NumPy, in float64, and by sorting."""
    z, ids, w = logits.reshape(-1, logits.shape[-1]), ids.ravel(), weights.ravel()
    z, ids, w = z[w != 0], ids[w != 0], w[w != 0].astype("float64")
    log_p = log_softmax(z)
    rank = np.argmax(np.argsort(-z, -1, kind="stable") == ids[:, None], -1)
    cross_entropy = np.average(-log_p[np.arange(len(ids)), ids], weights=w)
    return {
        "accuracy": np.average(rank == 0, weights=w),
        "top_5_accuracy": np.average(rank < 5, weights=w),
        "cross_entropy": cross_entropy,
        "perplexity": np.exp(cross_entropy),
        "entropy": np.average(-np.sum(np.exp(log_p) * log_p, -1), weights=w),
        "invalid_labels": 0.0,
    }


def assert_close(found, expected, rtol=64 * EPS):
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol, 1e-6, err_msg=name)


# Whose numbers they are


@both
@modes
def test_fit_shows_what_weighted_metrics_show(mode, fused):
    """While weights move, in training and validation.

    Weights are 0 where the mask is, since the stock metrics of JAX do not see masks.
    """
    head = head_of(ALL[:3])
    stock = [
        SparseCategoricalAccuracy(name="accuracy"),
        SparseTopKCategoricalAccuracy(5, name="top_5_accuracy"),
        SparseCategoricalCrossentropy(from_logits=True, name="cross_entropy"),
    ]
    loss = SoftmaxCrossEntropy(fused=fused)
    model = text_model(head, loss=loss, weighted_metrics=stock, **mode)
    weights = WEIGHTS[:, None] * (WORDS != 0)
    data = (WORDS, NEXT, weights)
    x, y, w = (array[:12] for array in data)
    history = model.fit(
        x,
        y,
        sample_weight=w,
        validation_data=tuple(array[-HALF:] for array in data),
        batch_size=HALF,
        epochs=3,
        verbose=0,
    ).history
    for prefix in ("", "val_"):
        stock_numbers = {name: history[prefix + name] for name in ALL[:3]}
        found = reported(history, head, ALL[:3], prefix)
        assert_close(found, stock_numbers, rtol=1e-5)
        assert len(set(found["cross_entropy"])) == 3


@both
@modes
def test_evaluate_gives_the_figures_of_float64(mode, fused):
    head = head_of()
    loss = SoftmaxCrossEntropy(ignore_index=-1, fused=fused)
    model = text_model(head, loss=loss, **mode)
    labels = np.where(draw.random(NEXT.shape) < 0.2, -1, NEXT)
    weights = WEIGHTS[:, None] * (WORDS != 0) * (labels != -1)
    # 5, 5 and 3 rows, whose means do not weigh the same.
    found = evaluated(model, WORDS, labels, sample_weight=WEIGHTS, batch_size=5)
    found = reported(found, head)
    assert_close(found, expected(logits_of(model, WORDS), labels, weights))


@both
def test_weights_of_words_weigh_words(fused):
    head = head_of()
    model = text_model(head, loss=SoftmaxCrossEntropy(fused=fused), **QUICK)
    weights = draw.uniform(0.0, 2.0, NEXT.shape).astype("float32")
    found = evaluated(model, WORDS, NEXT, sample_weight=weights)
    logits = logits_of(model, WORDS)
    assert_close(reported(found, head), expected(logits, NEXT, weights * (WORDS != 0)))


@both
@pytest.mark.parametrize(
    "options",
    [
        {"label_smoothing": 0.2, "class_weight": {0: 5.0, 2: 0.0}, "z_loss": 0.1},
        {"reduction": "sum", "focal_gamma": 2.0},
        {"reduction": "sum_over_batch_size"},
        {"reduction": "mean"},
    ],
    ids=["weighted", "focal sum", "sum over batch", "mean"],
)
def test_they_do_not_depend_on_the_options_of_the_loss(options, fused):
    head = head_of()
    model = model_of(head, loss=SoftmaxCrossEntropy(fused=fused, **options))
    found = reported(evaluated(model, X, IDS, sample_weight=WEIGHTS), head)
    assert_close(found, expected(logits_of(model, X), IDS, WEIGHTS))


def test_a_vocabulary_of_many_blocks():
    """Half of the labels are among the first, in one or another of the blocks."""
    words, rng = 9 * 2048 + 5, np.random.default_rng(0)
    head = head_of(units=words)
    model = model_of(head, loss=SoftmaxCrossEntropy(fused=True))
    first = np.argsort(-logits_of(model, X), axis=-1)
    places = np.where(np.arange(len(X)) % 2, rng.integers(0, 9, len(X)), words // 2)
    ids = first[np.arange(len(X)), places]
    found = reported(evaluated(model, X, ids, sample_weight=WEIGHTS), head)
    assert 0 < found["accuracy"] < found["top_5_accuracy"] < 1
    assert_close(found, expected(logits_of(model, X), ids, WEIGHTS))


@both
def test_a_loss_of_single_positions_reports_too(fused):
    head = head_of()
    loss = SoftmaxCrossEntropy(reduction=None, fused=fused)
    loss(IDS, head(X), WEIGHTS)
    found = {t.name.removeprefix(f"{head.name}_"): t.result() for t in head.metrics}
    found = {name: ops.convert_to_numpy(value) for name, value in found.items()}
    logits = ops.convert_to_numpy(head(X))
    assert_close(found, expected(logits, IDS, WEIGHTS))


@both
def test_distributions_have_the_figures_of_the_stock_metrics(fused):
    head = head_of()
    labels = draw.dirichlet(np.ones(CLASSES), len(X)).astype("float32")
    model = model_of(head, loss=SoftmaxCrossEntropy(fused=fused))
    model.compile(loss=model.loss, weighted_metrics=[CategoricalAccuracy()], **QUICK)
    found = evaluated(model, X, labels, sample_weight=WEIGHTS)
    mine = reported(found, head)
    np.testing.assert_allclose(mine["accuracy"], found["categorical_accuracy"], 8 * EPS)
    log_p = log_softmax(logits_of(model, X))
    cross_entropy = np.average(-np.sum(labels * log_p, -1), weights=WEIGHTS)
    np.testing.assert_allclose(mine["cross_entropy"], cross_entropy, 16 * EPS)
    np.testing.assert_allclose(mine["perplexity"], np.exp(cross_entropy), 64 * EPS)


@both
def test_labels_of_one_axis_and_of_two_are_the_same(fused):
    head = head_of()
    model = model_of(head, loss=SoftmaxCrossEntropy(fused=fused))
    found = evaluated(model, X, IDS[:, None], sample_weight=WEIGHTS)
    found = reported(found, head)
    assert_close(found, expected(logits_of(model, X), IDS, WEIGHTS))


@both
def test_a_head_that_returns_probabilities_has_the_same_figures(fused):
    head = head_of(returns="probabilities", softcap=3.0, temperature=0.5)
    model = model_of(head, loss=SoftmaxCrossEntropy(fused=fused))
    found = reported(evaluated(model, X, IDS), head)
    logits = np.log(logits_of(model, X))
    assert_close(found, expected(logits, IDS, np.ones(13)), rtol=1e-5)


def test_a_tied_head_reports():
    words = Embedding(CLASSES, 6, embeddings_initializer="normal", name="words")
    head = LogitsHead(CLASSES, tied_to=words, reports=list(ALL))
    model = keras.Sequential([keras.Input((5,), dtype="int32"), words, head])
    model.compile("sgd", SoftmaxCrossEntropy(fused=True), **QUICK)
    found = reported(evaluated(model, WORDS, NEXT), head)
    logits = logits_of(model, WORDS)
    assert_close(found, expected(logits, NEXT, np.ones(NEXT.shape)))


@both
def test_half_precision_is_reported_of_the_logits_that_it_made(fused):
    head = head_of(dtype="mixed_bfloat16")
    model = model_of(head, loss=SoftmaxCrossEntropy(fused=fused))
    found = reported(evaluated(model, X, IDS, sample_weight=WEIGHTS), head)
    logits = logits_of(model, X)
    assert_close(found, expected(logits, IDS, WEIGHTS), rtol=1e-5)
    assert {t.dtype for t in head.metrics} == {"float32"}


def test_accumulated_gradients_change_no_figure():
    head = head_of(["cross_entropy", "accuracy"])
    model = model_of(head)
    stock = [
        SparseCategoricalAccuracy(name="accuracy"),
        SparseCategoricalCrossentropy(from_logits=True, name="cross_entropy"),
    ]
    optimizer = keras.optimizers.SGD(0.5, gradient_accumulation_steps=2)
    loss = SoftmaxCrossEntropy(fused=True)
    model.compile(optimizer, loss, weighted_metrics=stock, **QUICK)
    history = model.fit(X[:12], IDS[:12], batch_size=3, epochs=2, verbose=0).history
    found = reported(history, head, ["accuracy", "cross_entropy"])
    stock_numbers = {name: history[name] for name in found}
    assert_close(found, stock_numbers, rtol=1e-5)


# Independent units


def expected_of_units(logits, labels, weights):
    z, w = logits.astype("float64"), np.broadcast_to(weights, labels.shape)
    yes, no = np.logaddexp(0, -z), np.logaddexp(0, z)
    known = w != 0
    figures = {
        "accuracy": (z > 0) == (labels > 0.5),
        "cross_entropy": labels * yes + (1 - labels) * no,
        "entropy": np.exp(-yes) * yes + np.exp(-no) * no,
    }
    averages = {
        name: np.average(figure[known], weights=w[known])
        for name, figure in figures.items()
    }
    return {**averages, "invalid_labels": 0.0}


@modes
def test_units_have_the_figures_of_float64(mode):
    head = head_of(OF_UNITS, 3, "sigmoid")
    loss = SigmoidCrossEntropy(pos_weight=3.0, class_weight=[1.0, 2.0, 0.5])
    model = model_of(head, loss=loss, **mode)
    found = evaluated(model, X, UNITS, sample_weight=WEIGHTS, batch_size=5)
    logits = logits_of(model, X)
    reference = expected_of_units(logits, UNITS, WEIGHTS[:, None])
    assert_close(reported(found, head, OF_UNITS), reference)


def test_units_agree_with_the_stock_metric():
    head = head_of(OF_UNITS, 3, "sigmoid")
    model = model_of(head, loss=SigmoidCrossEntropy())
    stock = keras.metrics.BinaryAccuracy(threshold=0.0)
    model.compile("sgd", SigmoidCrossEntropy(), weighted_metrics=[stock], **QUICK)
    found = evaluated(model, X, UNITS, sample_weight=WEIGHTS)
    mine = reported(found, head, OF_UNITS)["accuracy"]
    np.testing.assert_allclose(mine, found["binary_accuracy"], 8 * EPS)


def test_units_that_are_ignored_do_not_count():
    head = head_of(OF_UNITS, 3, "sigmoid")
    model = model_of(head, loss=SigmoidCrossEntropy(ignore_index=-1))
    unknown = draw.random(UNITS.shape) < 0.4
    unknown[4] = True
    found = evaluated(model, X, np.where(unknown, -1.0, UNITS), sample_weight=WEIGHTS)
    logits, weights = logits_of(model, X), WEIGHTS[:, None] * ~unknown
    reference = expected_of_units(logits, UNITS, weights)
    assert_close(reported(found, head, OF_UNITS), reference)


def test_one_unit_reports():
    head = head_of(OF_UNITS, 1, "sigmoid")
    model = model_of(head, loss=SigmoidCrossEntropy())
    found = evaluated(model, X, UNITS[:, 0], sample_weight=WEIGHTS)
    logits = logits_of(model, X)
    reference = expected_of_units(logits, UNITS[:, :1], WEIGHTS[:, None])
    assert_close(reported(found, head, OF_UNITS), reference)


# Bad labels, and what hides behind a weight of 0


@both
@pytest.mark.parametrize("mode", COMPILED.values(), ids=COMPILED)
def test_bad_labels_are_counted_and_left_out_of_the_other_figures(mode, fused):
    head = head_of()
    loss = SoftmaxCrossEntropy(fused=fused)
    model = model_of(head, loss=loss, rate=0.0, **mode)
    x, labels, weights = X[:12], IDS[:12].copy(), WEIGHTS[:12].copy()
    labels[[0, 2, 11]] = -1, CLASSES, 1000
    labels[3], weights[3] = -7, 0.0  # nobody asked
    history = model.fit(
        x, labels, sample_weight=weights, batch_size=HALF, epochs=2, verbose=0
    ).history
    good = (labels >= 0) & (labels < CLASSES)
    logits = logits_of(model, x)
    reference = expected(logits, labels, weights * good)
    reference["invalid_labels"] = 3.0
    for epoch in range(2):
        logs = {name: values[epoch] for name, values in history.items()}
        assert_close(reported(logs, head), reference)
        assert np.isnan(logs["loss"])


@pytest.mark.parametrize("mode", COMPILED.values(), ids=COMPILED)
def test_bad_labels_of_units_are_counted_and_left_out(mode):
    head = head_of(OF_UNITS, 3, "sigmoid")
    model = model_of(head, loss=SigmoidCrossEntropy(), **mode)
    bad = np.zeros(UNITS.shape, bool)
    bad[1, :2] = bad[7, 2] = True
    found = evaluated(model, X, np.where(bad, 2.0, UNITS), sample_weight=WEIGHTS)
    logits, weights = logits_of(model, X), WEIGHTS[:, None] * ~bad
    reference = expected_of_units(logits, UNITS, weights)
    reference["invalid_labels"] = 3.0
    assert_close(reported(found, head, OF_UNITS), reference)


@both
def test_what_has_weight_0_stays_out_whatever_it_is(fused):
    head = head_of()
    model = model_of(head, loss=SoftmaxCrossEntropy(fused=fused))
    x, labels, weights = X.copy(), IDS.copy(), WEIGHTS.copy()
    x[4], labels[4], weights[4] = np.nan, -1, 0.0
    found = evaluated(model, x, labels, sample_weight=weights)
    logits = logits_of(model, X)
    assert_close(reported(found, head), expected(logits, IDS, weights))


@both
def test_a_closed_class_is_left_out_with_the_bad_labels(fused):
    if not COMPILED:
        pytest.skip("eager code refuses bad labels")
    head = head_of()
    model = model_of(head, loss=SoftmaxCrossEntropy(fused=fused))
    kernel, bias = head.get_weights()
    bias[0] = -np.inf  # what a bad label is replaced by, inside
    head.set_weights([kernel, bias])
    labels = np.where(IDS == 0, 1, IDS)
    labels[6] = -1
    logits, good = logits_of(model, X), labels >= 0
    found = reported(evaluated(model, X, labels, sample_weight=WEIGHTS), head)
    finite = np.where(np.isfinite(logits), logits, -1e9)
    reference = expected(finite, labels, WEIGHTS * good)
    reference["invalid_labels"] = 1.0
    assert_close(found, reference)


@both
def test_an_epoch_in_which_nothing_counts_has_figures_of_0(fused):
    head = head_of()
    model = model_of(head, loss=SoftmaxCrossEntropy(fused=fused))
    found = reported(evaluated(model, X, IDS, sample_weight=np.zeros(13)), head)
    assert_close(found, {**dict.fromkeys(ALL, 0.0), "perplexity": 1.0})


# Where they show


def test_each_epoch_starts_anew():
    head = head_of()
    model = model_of(head, loss=SoftmaxCrossEntropy(fused=True), rate=0.0)
    x, ids = X[:12], IDS[:12]
    history = model.fit(x, ids, batch_size=HALF, epochs=3, verbose=0).history
    reference = expected(logits_of(model, x), ids, np.ones(12))
    for epoch in range(3):
        logs = {name: values[epoch] for name, values in history.items()}
        assert_close(reported(logs, head), reference)
    found = evaluated(model, x, ids, batch_size=HALF)
    assert_close(reported(found, head), reference)


def test_a_callback_stops_by_a_report():
    head = head_of(["accuracy"], name="next")
    model = model_of(head, rate=0.0)
    stop = keras.callbacks.EarlyStopping(
        "val_next_accuracy", patience=2, mode="max", restore_best_weights=True
    )
    history = model.fit(
        X, IDS, validation_data=(X, IDS), epochs=9, callbacks=[stop], verbose=0
    )
    assert len(history.epoch) == 3
    assert stop.best == history.history["val_next_accuracy"][0]


def test_evaluate_lists_them_behind_the_loss_in_their_order():
    head = head_of(["entropy", "accuracy"], name="next")
    model = model_of(head)
    as_list = model.evaluate(X, IDS, verbose=0)
    by_name = model.evaluate(X, IDS, verbose=0, return_dict=True)
    names = ["loss", "next_entropy", "next_accuracy"]
    np.testing.assert_allclose(as_list, [by_name[name] for name in names], 4 * EPS)


def test_single_batches_report():
    head = head_of()
    model = model_of(head, loss=SoftmaxCrossEntropy(fused=True), rate=0.0)
    logits = logits_of(model, X)
    reference = expected(logits, IDS, np.ones(13))
    model.reset_metrics()
    assert_close(
        reported(model.train_on_batch(X, IDS, return_dict=True), head), reference
    )
    model.reset_metrics()
    assert_close(
        reported(model.test_on_batch(X, IDS, return_dict=True), head), reference
    )


def test_several_heads_report_under_their_own_names():
    inputs = keras.Input((6,))
    left, right = (
        head_of(name="left"),
        head_of(["accuracy", "entropy"], 4, name="right"),
    )
    units = head_of(OF_UNITS, 3, "sigmoid", name="units")
    model = keras.Model(inputs, [head(inputs) for head in (left, right, units)])
    losses = [SoftmaxCrossEntropy(fused=True) for _ in range(2)]
    model.compile("sgd", [*losses, SigmoidCrossEntropy()], **QUICK)
    found = evaluated(model, X, [IDS, IDS % 4, UNITS])
    one, two, three = map(ops.convert_to_numpy, model(X))
    assert_close(reported(found, left), expected(one, IDS, np.ones(13)))
    reference = expected(two, IDS % 4, np.ones(13))
    reference = {name: reference[name] for name in right.reports}
    assert_close(reported(found, right, right.reports), reference)
    reference = expected_of_units(three, UNITS, np.ones((13, 1)))
    assert_close(reported(found, units, OF_UNITS), reference)


@both
def test_heads_without_a_name_do_not_collide(fused):
    inputs, heads = keras.Input((6,)), [head_of(["accuracy"]) for _ in range(2)]
    model = keras.Model(inputs, [head(inputs) for head in heads])
    model.compile("sgd", [SoftmaxCrossEntropy(fused=fused)] * 2, **QUICK)
    found = evaluated(model, X, [IDS, (IDS + 1) % CLASSES])
    for head, z in zip(heads, map(ops.convert_to_numpy, model(X)), strict=True):
        labels = IDS if head is heads[0] else (IDS + 1) % CLASSES
        reference = {"accuracy": np.mean(z.argmax(-1) == labels)}
        assert_close(reported(found, head, ["accuracy"]), reference)


class Wrapped(keras.Model):
    """A head two floors down, in a layer that nobody compiled."""

    def __init__(self, head):
        super().__init__()
        self.inner = keras.Sequential([Dense(6, "tanh"), head])

    def call(self, inputs):
        return self.inner(inputs)


@modes
def test_a_head_inside_of_other_models_reports(mode):
    head = head_of()
    model = Wrapped(head)
    model.compile("sgd", SoftmaxCrossEntropy(fused=True), **mode)
    found = reported(evaluated(model, X, IDS, sample_weight=WEIGHTS), head)
    assert_close(found, expected(logits_of(model, X), IDS, WEIGHTS))


def test_a_stock_loss_leaves_them_empty():
    head = head_of(["accuracy"])
    stock = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = model_of(head, loss=stock)
    assert reported(evaluated(model, X, IDS), head, ["accuracy"]) == {"accuracy": 0.0}


# What they do not change


@both
@modes
def test_a_head_with_reports_trains_as_one_without(mode, fused):
    weights = []
    batches = {"sample_weight": WEIGHTS[:12], "batch_size": HALF, "epochs": 4}
    for reports in ((), ALL):
        keras.utils.set_random_seed(9)
        head = head_of(reports)
        loss = SoftmaxCrossEntropy(fused=fused)
        model = model_of(Dense(6, "tanh"), head, loss=loss, **mode)
        model.fit(X[:12], IDS[:12], verbose=0, **batches)
        weights.append(model.get_weights())
    assert len(weights[0]) == len(weights[1]) == 4
    for without, with_reports in zip(*weights, strict=True):
        np.testing.assert_allclose(with_reports, without, 8 * EPS, 8 * EPS)


def test_they_are_no_weights_of_the_layer():
    head = head_of()
    head.build((None, 6))
    assert len(head.weights) == len(head.variables) == 2
    assert head.count_params() == 7 * CLASSES
    assert [metric.name for metric in head.metrics] == [
        f"{head.name}_{name}" for name in ALL
    ]


def test_a_head_without_reports_has_no_metrics():
    assert LogitsHead(3).metrics == []


def test_nothing_of_size_tokens_by_vocabulary_is_made_for_them():
    if BACKEND != "jax":
        pytest.skip("the program is read on JAX")
    import jax

    tokens, vocabulary = 1024, 509  # both of which no other size is a multiple of
    head = head_of(ALL, vocabulary)
    head.build((None, 6))
    x = draw.normal(size=(tokens, 6)).astype("float32")
    labels = draw.integers(0, vocabulary, tokens)
    trackers = head.metrics_variables

    def loss_of(weights, states, x, labels, loss):
        mapping = [*zip(head.trainable_variables, weights, strict=True)]
        mapping += zip(trackers, states, strict=True)
        with keras.StatelessScope(state_mapping=mapping) as scope:
            value = loss(labels, head(x))
        return value, [scope.get_current_value(state) for state in trackers]

    def program(loss):
        run = jax.value_and_grad(
            lambda *arguments: loss_of(*arguments, loss), has_aux=True
        )
        given = [
            [ops.convert_to_tensor(v) for v in variables]
            for variables in (head.trainable_variables, trackers)
        ]
        return jax.jit(run).lower(*given, x, labels).compile().as_text()

    def largest(text):
        shapes = re.findall(r"\b[a-z]+\d*\[([\d,]+)\]", text)
        return max(np.prod([int(n) for n in shape.split(",")]) for shape in shapes)

    budget = 64 * vocabulary * 4
    fused = program(SoftmaxCrossEntropy(fused=True, memory_budget=budget))
    assert largest(fused) < tokens * vocabulary // 4
    assert largest(program(SoftmaxCrossEntropy(fused=False))) >= tokens * vocabulary


# Files and copies


@both
def test_a_saved_model_reports_as_before(tmp_path, fused):
    head = head_of(name="next")
    model = model_of(head, loss=SoftmaxCrossEntropy(fused=fused))
    model.fit(X, IDS, verbose=0)
    before = evaluated(model, X, IDS, sample_weight=WEIGHTS)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    after = evaluated(loaded, X, IDS, sample_weight=WEIGHTS)
    assert_close(after, before)
    history = loaded.fit(X, IDS, epochs=2, verbose=0).history
    assert len(set(history["next_cross_entropy"])) == 2
    assert_close(evaluated(model, X, IDS, sample_weight=WEIGHTS), before)


@pytest.mark.parametrize("reports", [(ALL, ()), ((), ALL), (ALL, ALL[:1])])
def test_weights_load_whatever_either_model_reports(tmp_path, reports):
    saved, loaded = (model_of(head_of(names, name="next")) for names in reports)
    saved.fit(X, IDS, verbose=0)
    saved.save_weights(tmp_path / "model.weights.h5")
    loaded.load_weights(tmp_path / "model.weights.h5")
    for one, other in zip(saved.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_config_names_the_reports():
    head = head_of(["entropy", "accuracy"])
    config = head.get_config()
    assert config["reports"] == ["entropy", "accuracy"]
    again = LogitsHead.from_config(config)
    assert again.get_config() == config
    assert [m.name for m in again.metrics] == [m.name for m in head.metrics]
    assert not {id(m) for m in again.metrics} & {id(m) for m in head.metrics}


def test_a_clone_reports_of_itself():
    model = model_of(head_of(name="next"))
    clone = keras.models.clone_model(model)
    clone.compile("sgd", SoftmaxCrossEntropy(), **QUICK)
    before = [ops.convert_to_numpy(m.result()) for m in model.layers[-1].metrics]
    found = reported(evaluated(clone, X, IDS), clone.layers[-1])
    assert_close(found, expected(logits_of(clone, X), IDS, np.ones(13)))
    after = [ops.convert_to_numpy(m.result()) for m in model.layers[-1].metrics]
    np.testing.assert_array_equal(after, before)


# What is refused


@pytest.mark.parametrize(
    ("reports", "activation"),
    [
        (["acuracy"], "softmax"),
        (["accuracy", "loss"], "softmax"),
        (["accuracy", "accuracy"], "softmax"),
        ("accuracy", "softmax"),
        ("", "softmax"),
        (None, "softmax"),
        (True, "softmax"),
        ({"accuracy"}, "softmax"),
        ([["accuracy"]], "softmax"),
        ([1], "softmax"),
        (["perplexity"], "sigmoid"),
        (["top_5_accuracy"], "sigmoid"),
    ],
)
def test_reports_that_are_none_are_refused(reports, activation):
    with pytest.raises(ValueError, match="`reports` must") as error:
        LogitsHead(3, activation, reports=reports)
    message = str(error.value)
    assert f"\nReceived: reports={reports!r}\n" in message
    assert "\nFix: reports=['accuracy']" in message
    assert "'entropy'" in message
    assert ("perplexity" in message.partition("Received")[0]) == (
        activation == "softmax"
    )


@pytest.mark.parametrize("reports", [[], (), ["accuracy"], ("accuracy", "entropy")])
def test_reports_are_a_list_or_a_tuple(reports):
    assert LogitsHead(3, reports=reports).reports == tuple(reports)
