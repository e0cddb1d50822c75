"""What every public object promises, asked of each row of the catalogue."""

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

import keras_logits
from catalogue import CLASSES, WIDTH, Catalogue, evaluated

pytestmark = pytest.mark.compiled_fast
ROOT = Path(__file__).parents[1]
BACKEND = keras.config.backend()
MODES = {
    "eager": {"run_eagerly": True},
    "graph": {"jit_compile": False},
    "jit": {"jit_compile": True},
}
COMPILED = {"tensorflow": ["graph", "jit"], "jax": ["jit"], "torch": []}[BACKEND]

CATALOGUE = Catalogue(keras, keras_logits)
ROWS = CATALOGUE.rows
OBJECTS = [
    keras_logits.LogitsHead,
    keras_logits.MarkLogits,
    keras_logits.SigmoidCrossEntropy,
    keras_logits.SoftmaxCrossEntropy,
]
FUNCTIONS = [
    keras_logits.linear_softmax_cross_entropy,
    keras_logits.logit,
    keras_logits.probabilities,
    keras_logits.sigmoid_cross_entropy,
    keras_logits.softmax_cross_entropy,
]

each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
each_object = pytest.mark.parametrize("cls", OBJECTS, ids=lambda cls: cls.__name__)
each_public = pytest.mark.parametrize(
    "thing", [*OBJECTS, *FUNCTIONS], ids=lambda thing: thing.__name__
)


def number(tensor):
    return float(ops.convert_to_numpy(tensor))


def as_json(thing):
    return json.loads(json.dumps(thing.get_config()))


def arguments(thing):
    """The parameters that a user may set by name."""
    called = thing.__init__ if inspect.isclass(thing) else thing
    parameters = inspect.signature(called).parameters.values()
    return [p for p in parameters if p.name != "self" and p.kind != p.VAR_KEYWORD]


# Configs


@each_row
def test_a_config_survives_json(row):
    thing = row.make()
    twin = type(thing).from_config(as_json(thing))
    assert as_json(twin) == as_json(thing)


@each_row
def test_an_object_made_from_a_config_does_the_same(row):
    thing = row.make()
    twin = type(thing).from_config(as_json(thing))
    (model, loss), (twins_model, twins_loss) = row.build(thing), row.build(twin)
    x, y = row.data()
    twins_model.set_weights(model.get_weights())
    out, twins_out = model(x), twins_model(x)
    np.testing.assert_array_equal(*map(ops.convert_to_numpy, (out, twins_out)))
    assert number(loss(y, out)) == number(twins_loss(y, twins_out))


@each_object
def test_every_argument_is_in_the_config(cls):
    thing = next(t for t in (row.make() for row in ROWS) if type(t) is cls)
    assert {p.name for p in arguments(cls)} <= thing.get_config().keys()


@each_object
def test_the_catalogue_sets_every_argument_that_has_a_default(cls):
    configs = [as_json(row.make()) for row in ROWS if type(row.make()) is cls]
    for parameter in arguments(cls):
        if parameter.default is not parameter.empty:
            values = [config[parameter.name] for config in configs]
            assert any(value != values[0] for value in values), parameter.name


# Files

LOAD = """
import sys, keras_logits
import keras, numpy as np
for folder in sys.argv[1:]:
    model = keras.models.load_model(folder + "/model.keras")
    tied = [layer.tied_to for layer in model.layers if hasattr(layer, "tied_to")]
    assert all(layer is None or layer in model.layers for layer in tied)
    data = np.load(folder + "/data.npz")
    out = keras.ops.convert_to_numpy(model(data["x"]))
    loss = model.evaluate(
        data["x"], data["y"], verbose=0, return_dict=True
    )["loss"]
    np.savez(folder + "/loaded.npz", out=out, loss=loss)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """For each row the folder of its trained model, which a new process loads."""
    folders = {row.name: tmp_path_factory.mktemp("row") for row in ROWS}
    for row in ROWS:
        (x, y), folder = row.data(), folders[row.name]
        model = row.compiled(run_eagerly=True)
        model.train_on_batch(x, y)
        model.save(folder / "model.keras")
        out = ops.convert_to_numpy(model(x))
        loss = evaluated(model, x, y)
        np.savez(folder / "data.npz", x=x, y=y, out=out, loss=loss)
    command = [sys.executable, "-c", LOAD, *map(str, folders.values())]
    like_here = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiled_fast
    done = subprocess.run(
        command, cwd=ROOT, env=like_here, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folders


@each_row
def test_a_saved_model_predicts_and_has_a_loss_as_before_in_a_new_process(files, row):
    saved, loaded = (np.load(files[row.name] / f) for f in ("data.npz", "loaded.npz"))
    np.testing.assert_array_equal(saved["out"], loaded["out"])
    assert saved["loss"] == loaded["loss"]


# Training


def curve(row, mode):
    model = row.compiled(**MODES[mode])
    x, y = row.data()
    history = model.fit(x, y, batch_size=4, epochs=3, shuffle=False, verbose=0)
    return [*history.history["loss"], evaluated(model, x, y)]


@each_row
def test_fit_and_evaluate_are_the_same_in_every_mode(row):
    eager = curve(row, "eager")
    for mode in COMPILED:
        # Twelve steps in float32, whose sums each mode orders in its own way.
        np.testing.assert_allclose(curve(row, mode), eager, rtol=1e-5, err_msg=mode)


@each_row
def test_evaluate_gives_what_the_loss_gives(row):
    model = row.compiled(run_eagerly=True)
    x, y = row.data()
    value = number(model.loss(y, model(x))) + sum(map(number, model.losses))
    np.testing.assert_allclose(evaluated(model, x, y), value, rtol=1e-6)


# Mixed precision


@pytest.fixture
def half():
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("row", CATALOGUE.heads, ids=lambda row: row.name)
def test_a_head_is_float32_under_mixed_precision(half, row):
    model, _ = row.build()
    x, _ = row.data()
    assert model.outputs[0].dtype == "float32"
    assert keras.backend.standardize_dtype(model(x).dtype) == "float32"
    assert {weight.dtype for weight in model.weights} == {"float32"}


@pytest.mark.parametrize("row", CATALOGUE.marks, ids=lambda row: row.name)
def test_a_mark_keeps_the_dtype_of_the_logits(half, row):
    model, _ = row.build()
    x, _ = row.data()
    assert model.outputs[0].dtype == "bfloat16"
    assert keras.backend.standardize_dtype(model(x).dtype) == "bfloat16"


@each_row
def test_a_loss_is_float32_and_trains_under_mixed_precision(half, row):
    model = row.compiled(run_eagerly=True)
    x, y = row.data()
    value = model.loss(y, model(x))
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    before = evaluated(model, x, y)
    model.train_on_batch(x, y)
    assert evaluated(model, x, y) < before < np.inf


# Documentation


def sections(thing):
    """The text of a docstring under each of its headings, 'What' being the first."""
    parts = re.split(r"^(\w[\w ]*):\n", inspect.getdoc(thing), flags=re.MULTILINE)
    return {"What": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


@each_public
def test_it_is_documented(thing):
    found = sections(thing)
    assert {"Args", "Returns", "Example", "See also"} <= found.keys()
    named = re.findall(r"^    (\w+): ", found["Args"], flags=re.MULTILINE)
    expected = [p.name for p in arguments(thing)]
    assert [name for name in expected if name in named] == [*expected]


@each_public
def test_it_is_annotated(thing):
    signature = inspect.signature(thing.__init__ if inspect.isclass(thing) else thing)
    parameters = [p for name, p in signature.parameters.items() if name != "self"]
    assert all(p.annotation is not p.empty for p in parameters)
    assert signature.return_annotation is not signature.empty


def numbers(text):
    return re.findall(r"[-+]?\d+\.?\d*(?:e[-+]?\d+)?", text)


@each_public
def test_its_example_runs_and_gives_what_it_shows(thing):
    logits = keras.layers.Dense(CLASSES)
    names = {
        **vars(keras_logits),
        "keras": keras,
        "model": keras.Sequential([keras.Input((WIDTH,)), logits]),
        "backbone_with_logits": keras.Sequential([keras.Input((WIDTH,)), logits]),
    }
    lines = sections(thing)["Example"].strip().splitlines()
    assert lines[0].lstrip().startswith(">>> ")
    for line, shown in zip(lines, [*lines[1:], ""], strict=True):
        code = line.strip().removeprefix(">>> ").partition("  #")[0]
        if not line.lstrip().startswith(">>> "):
            continue
        if not re.match(r"\s*[\[\d]", shown):
            exec(code, names)
            continue
        got = ops.convert_to_numpy(eval(code, names))
        for value, digits in zip(got.ravel(), numbers(shown), strict=True):
            half_a_digit = 0.5 * 10.0 ** -len(digits.partition(".")[2])
            rounding = np.spacing(np.float32(abs(value)))
            assert abs(value - float(digits)) <= half_a_digit + rounding


# The public surface


def test_the_public_names_are_these():
    assert keras_logits.__all__ == [
        "LogitsHead",
        "MarkLogits",
        "SigmoidCrossEntropy",
        "SoftmaxCrossEntropy",
        "__version__",
        "linear_softmax_cross_entropy",
        "logit",
        "probabilities",
        "sigmoid_cross_entropy",
        "softmax_cross_entropy",
    ]


def test_nothing_else_leaks():
    public = {
        name
        for name, thing in vars(keras_logits).items()
        if not name.startswith("_") and not inspect.ismodule(thing)
    }
    assert public | {"__version__"} == set(keras_logits.__all__)


@each_object
def test_registered_names_never_change(cls):
    """Files that people have saved hold these names."""
    name = {
        keras_logits.LogitsHead: "keras_logits>LogitsHead",
        keras_logits.MarkLogits: "keras_logits>MarkLogits",
        keras_logits.SigmoidCrossEntropy: "keras_logits>SigmoidCrossEntropy",
        keras_logits.SoftmaxCrossEntropy: "keras_logits>SoftmaxCrossEntropy",
    }[cls]
    assert keras.saving.get_registered_name(cls) == name
    assert keras.saving.get_registered_object(name) is cls
