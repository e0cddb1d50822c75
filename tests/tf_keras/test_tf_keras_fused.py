"""Keras 2 models: the fused pass trains as the plain one, and heads report."""

import numpy as np
import pytest
import tf_keras as keras
from tf_keras.layers import Dense, Embedding

from budgets import budget_for
from keras_logits.tf_keras import LogitsHead, SigmoidCrossEntropy, SoftmaxCrossEntropy

MODES = {
    "eager": {"run_eagerly": True},
    "graph": {"jit_compile": False},
    "jit": {"jit_compile": True},
}
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
draw = np.random.default_rng(5)
X = draw.normal(size=(13, 6)).astype("float32")
IDS = draw.integers(0, CLASSES, 13)
WEIGHTS = draw.uniform(0.0, 3.0, 13).astype("float32")
WORDS = draw.integers(1, CLASSES, (13, 4))
WORDS[::2, 3:] = 0  # padding
NEXT = draw.integers(0, CLASSES, WORDS.shape)

both = pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
modes = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(3)


def head_of(reports=ALL, units=CLASSES, *args, **kwargs):
    drawn = keras.initializers.RandomNormal(stddev=1.0)
    return LogitsHead(
        units, *args, reports=list(reports), kernel_initializer=drawn, **kwargs
    )


def model_of(*layers, loss=None, rate=0.3, **options):
    model = keras.Sequential([keras.Input(X.shape[1:]), *layers])
    options = options or MODES["graph"]
    loss = loss or SoftmaxCrossEntropy()
    model.compile(keras.optimizers.SGD(rate), loss, **options)
    return model


def text_model(tied, **options):
    words = Embedding(CLASSES, 6, mask_zero=True)
    head = LogitsHead(CLASSES, tied_to=words, reports=ALL) if tied else head_of()
    model = keras.Sequential([keras.Input((4,)), words, Dense(6, "tanh"), head])
    words.set_weights([draw.normal(size=(CLASSES, 6))])
    model.compile(keras.optimizers.SGD(0.3), **options)
    return model


def reported(logs, head, names=ALL, prefix=""):
    return {name: logs[f"{prefix}{head.name}_{name}"] for name in names}


def evaluated(model, x, y, **kwargs):
    return model.evaluate(x, y, batch_size=5, verbose=0, return_dict=True, **kwargs)


def log_softmax(z):
    z = np.asarray(z, "float64")
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def expected(logits, ids, weights):
    """The figures of NumPy, in float64, and by sorting."""
    z, ids, w = np.reshape(logits, (-1, CLASSES)), ids.ravel(), weights.ravel()
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


# Training


@pytest.mark.parametrize("tied", [False, True], ids=["free", "tied"])
@modes
def test_fused_and_plain_train_alike(mode, tied):
    curves, weights = [], []
    for fused in (False, True):
        keras.utils.set_random_seed(9)
        draw.bit_generator.state = np.random.default_rng(4).bit_generator.state
        budget = budget_for(3, CLASSES, 6)
        loss = SoftmaxCrossEntropy(fused=fused, memory_budget=budget)
        model = text_model(tied, loss=loss, **mode)
        history = model.fit(
            WORDS,
            NEXT,
            sample_weight=WEIGHTS[:, None] * np.ones((1, 4)),
            epochs=3,
            shuffle=False,
            verbose=0,
        ).history
        curves.append(history)
        weights.append(model.get_weights())
    assert len(weights[0]) == (4 if tied else 5)
    for plain, fused in zip(*weights, strict=True):
        np.testing.assert_allclose(fused, plain, 1e-5, 1e-6)
    for plain, fused in zip(*(history.values() for history in curves), strict=True):
        np.testing.assert_allclose(fused, plain, 1e-5)
    assert len(set(curves[1]["loss"])) == 3


def test_a_fused_loss_that_cannot_be_fused_is_refused():
    loss = SoftmaxCrossEntropy(from_logits=True, fused=True)
    model = model_of(Dense(CLASSES), loss=loss, run_eagerly=True)
    with pytest.raises(ValueError, match="`fused=True` is not possible here"):
        model.fit(X, IDS, verbose=0)


# Reports


@pytest.mark.parametrize(
    ("mode", "fused"),
    [("eager", True), ("graph", True), ("jit", True), ("jit", False)],
)
def test_reports_are_the_figures_of_float64(mode, fused):
    head = head_of()
    loss = SoftmaxCrossEntropy(ignore_index=-1, fused=fused)
    model = model_of(head, loss=loss, rate=0.0, **MODES[mode])
    labels = IDS.copy()
    labels[[1, 12]] = -1
    history = model.fit(
        X,
        labels,
        sample_weight=WEIGHTS,
        validation_data=(X[2:], IDS[2:]),
        batch_size=5,
        epochs=2,
        verbose=0,
    ).history
    logits = model.predict(X, verbose=0)
    trained = expected(logits, labels, WEIGHTS * (labels != -1))
    validated = expected(logits[2:], IDS[2:], np.ones(11))
    for epoch in range(2):
        logs = {name: values[epoch] for name, values in history.items()}
        assert_close(reported(logs, head), trained)
        assert_close(reported(logs, head, prefix="val_"), validated)
    found = evaluated(model, X, labels, sample_weight=WEIGHTS)
    assert_close(reported(found, head), trained)


@both
def test_reports_are_the_numbers_of_the_stock_metrics(fused):
    stock = [
        keras.metrics.SparseCategoricalAccuracy("accuracy"),
        keras.metrics.SparseTopKCategoricalAccuracy(5, "top_5_accuracy"),
        keras.metrics.SparseCategoricalCrossentropy("cross_entropy", from_logits=True),
    ]
    head, loss = head_of(ALL[:3]), SoftmaxCrossEntropy(fused=fused)
    model = model_of(head, loss=loss)
    model.compile(keras.optimizers.SGD(0.3), loss, weighted_metrics=stock)
    history = model.fit(
        X, IDS, sample_weight=WEIGHTS, batch_size=5, epochs=3, verbose=0
    ).history
    found = reported(history, head, ALL[:3])
    assert_close(found, {name: history[name] for name in ALL[:3]}, 1e-5)
    assert len(set(found["cross_entropy"])) == 3


@both
def test_what_a_mask_hides_is_in_no_report(fused):
    model = text_model(False, loss=SoftmaxCrossEntropy(fused=fused))
    labels = np.where(WORDS == 0, -1, NEXT)
    found = reported(evaluated(model, WORDS, labels), model.layers[-1])
    logits = model.predict(WORDS, verbose=0)
    assert_close(found, expected(logits, NEXT, np.float32(WORDS != 0)))


@both
def test_bad_labels_are_counted_and_left_out_of_the_other_reports(fused):
    head = head_of()
    model = model_of(head, loss=SoftmaxCrossEntropy(fused=fused))
    labels = IDS.copy()
    labels[[0, 11]] = -1, CLASSES
    good = (labels >= 0) & (labels < CLASSES)
    found = reported(evaluated(model, X, labels, sample_weight=WEIGHTS), head)
    reference = expected(model.predict(X, verbose=0), labels, WEIGHTS * good)
    assert_close(found, {**reference, "invalid_labels": 2.0})


def test_units_report():
    names = ("accuracy", "cross_entropy", "invalid_labels")
    head = head_of(names, 3, "sigmoid")
    model = model_of(head, loss=SigmoidCrossEntropy(ignore_index=-1))
    labels = draw.integers(-1, 2, (13, 3)).astype("float32")
    found = reported(evaluated(model, X, labels), head, names)
    z, known = model.predict(X, verbose=0).astype("float64"), labels >= 0
    losses = labels * np.logaddexp(0, -z) + (1 - labels) * np.logaddexp(0, z)
    reference = {
        "accuracy": np.mean(((z > 0) == labels)[known]),
        "cross_entropy": np.mean(losses[known]),
        "invalid_labels": 0.0,
    }
    assert_close(found, reference)


@both
def test_several_heads_report_under_their_own_names(fused):
    inputs = keras.Input((6,))
    heads = [head_of(name="left"), head_of(ALL[:2], name="right")]
    model = keras.Model(inputs, [head(inputs) for head in heads])
    losses = [SoftmaxCrossEntropy(fused=fused) for _ in heads]
    model.compile("sgd", losses, jit_compile=False)
    labels = [IDS, (IDS + 1) % CLASSES]
    found = evaluated(model, X, labels)
    for head, ids, z in zip(heads, labels, model.predict(X, verbose=0), strict=True):
        reference = expected(z, ids, np.ones(13))
        reference = {name: reference[name] for name in head.reports}
        assert_close(reported(found, head, head.reports), reference)


@both
def test_a_head_with_reports_trains_as_one_without(fused):
    weights = []
    for reports in ((), ALL):
        keras.utils.set_random_seed(9)
        loss = SoftmaxCrossEntropy(fused=fused)
        model = model_of(Dense(6, "tanh"), head_of(reports), loss=loss)
        model.fit(X, IDS, batch_size=5, epochs=3, verbose=0)
        weights.append(model.get_weights())
    assert len(weights[0]) == len(weights[1]) == 4
    for without, with_reports in zip(*weights, strict=True):
        np.testing.assert_allclose(with_reports, without, 8 * EPS, 8 * EPS)


def test_a_callback_stops_by_a_report():
    model = model_of(head_of(["accuracy"], name="next"), rate=0.0)
    stop = keras.callbacks.EarlyStopping("val_next_accuracy", patience=2, mode="max")
    history = model.fit(
        X, IDS, validation_data=(X, IDS), epochs=9, callbacks=[stop], verbose=0
    )
    assert len(history.epoch) == 3


@both
def test_a_saved_model_reports_as_before(tmp_path, fused):
    model = model_of(head_of(name="next"), loss=SoftmaxCrossEntropy(fused=fused))
    model.fit(X, IDS, batch_size=5, verbose=0)
    before = evaluated(model, X, IDS, sample_weight=WEIGHTS)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_close(evaluated(loaded, X, IDS, sample_weight=WEIGHTS), before)


def test_a_clone_has_reports_of_its_own():
    model = model_of(head_of(name="next"))
    clone = keras.models.clone_model(model)
    mine, its = (m.layers[-1].metrics for m in (model, clone))
    assert [m.name for m in mine] == [m.name for m in its]
    assert not {id(m) for m in mine} & {id(m) for m in its}


def test_reports_that_are_none_are_refused():
    with pytest.raises(ValueError, match="`reports` must") as error:
        LogitsHead(3, "sigmoid", reports=["perplexity"])
    assert "\nReceived: reports=['perplexity']\n" in str(error.value)
