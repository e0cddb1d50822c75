"""What every object promises in Keras 3, asked of its twin for tf-keras."""

import json
import subprocess
import sys
from pathlib import Path

import keras as keras3
import numpy as np
import pytest
import tf_keras as keras

import keras_logits
from catalogue import Catalogue, evaluated
from keras_logits import tf_keras as ours

ROOT = Path(__file__).parents[2]
CATALOGUE = Catalogue(keras, ours)
ROWS = CATALOGUE.rows
MODES = {
    "eager": {"run_eagerly": True},
    "graph": {"jit_compile": False},
    "jit": {"jit_compile": True},
}
# The rows for what takes long. The rest differs in maths alone, which is the same code.
FEW = [
    row
    for row in ROWS
    if row.name
    in (
        "head, sigmoid of p",
        "head, tied",
        "head, dressed",
        "mark, sigmoid",
        "softmax, full",
        "softmax, of p",
        "sigmoid, full",
    )
]
few_rows = pytest.mark.parametrize("row", FEW, ids=lambda row: row.name)
each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
each_name = pytest.mark.parametrize("name", ours.__all__)


def as_json(thing):
    return json.loads(json.dumps(thing.get_config()))


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
    np.testing.assert_array_equal(out, twins_out)
    assert float(loss(y, out)) == float(twins_loss(y, twins_out))


@pytest.mark.parametrize(
    ("row", "twin"),
    list(zip(ROWS, Catalogue(keras3, keras_logits).rows, strict=True)),
    ids=lambda row: row.name,
)
def test_a_config_has_what_that_of_its_keras_3_twin_has(row, twin):
    assert as_json(row.make()).keys() == as_json(twin.make()).keys()


LOAD = """
import sys, keras_logits.tf_keras
import tf_keras as keras, numpy as np
for folder in sys.argv[1:]:
    model = keras.models.load_model(folder + "/model.keras")
    tied = [layer.tied_to for layer in model.layers if hasattr(layer, "tied_to")]
    assert all(layer is None or layer in model.layers for layer in tied)
    data = np.load(folder + "/data.npz")
    out = model(data["x"]).numpy()
    model.set_weights([0 * weight for weight in model.get_weights()])
    model.load_weights(folder + "/model.weights.h5")
    loss = model.evaluate(
        data["x"], data["y"], verbose=0, return_dict=True
    )["loss"]
    np.savez(folder + "/loaded.npz", out=out, loss=loss)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """For each row the folder of its trained model, which a new process loads."""
    folders = {row.name: tmp_path_factory.mktemp("row") for row in FEW}
    for row in FEW:
        (x, y), folder = row.data(), folders[row.name]
        model = row.compiled(run_eagerly=True)
        model.train_on_batch(x, y)
        model.save(folder / "model.keras")
        model.save_weights(folder / "model.weights.h5")
        loss = evaluated(model, x, y)
        np.savez(folder / "data.npz", x=x, y=y, out=model(x), loss=loss)
    command = [sys.executable, "-c", LOAD, *map(str, folders.values())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folders


@few_rows
def test_a_saved_model_does_the_same_in_a_new_process(files, row):
    saved, loaded = (np.load(files[row.name] / f) for f in ("data.npz", "loaded.npz"))
    np.testing.assert_array_equal(saved["out"], loaded["out"])
    assert saved["loss"] == loaded["loss"]  # with the weights of the other file


def curve(row, mode):
    model = row.compiled(**MODES[mode])
    x, y = row.data()
    history = model.fit(x, y, batch_size=4, epochs=3, shuffle=False, verbose=0)
    return [*history.history["loss"], evaluated(model, x, y)]


@few_rows
def test_fit_and_evaluate_are_the_same_in_every_mode(row):
    eager = curve(row, "eager")
    for mode in ("graph", "jit"):
        np.testing.assert_allclose(curve(row, mode), eager, rtol=1e-5, err_msg=mode)


@pytest.fixture
def half():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    yield
    keras.mixed_precision.set_global_policy("float32")


@pytest.mark.parametrize("row", CATALOGUE.heads, ids=lambda row: row.name)
def test_a_head_is_float32_under_mixed_precision(half, row):
    model, _ = row.build()
    x, _ = row.data()
    assert model.output.dtype == model(x).dtype == "float32"
    assert all(weight.dtype == "float32" for weight in model.weights)


@each_row
def test_a_loss_is_float32_and_trains_under_mixed_precision(half, row):
    model = row.compiled(run_eagerly=True)
    x, y = row.data()
    assert model.loss(y, model(x)).dtype == "float32"
    before = evaluated(model, x, y)
    model.train_on_batch(x, y)
    assert evaluated(model, x, y) < before < np.inf


@each_name
def test_registered_names_never_change(name):
    registered = f"keras_logits>{name}"
    assert keras.saving.get_registered_name(getattr(ours, name)) == registered
    assert keras.saving.get_registered_object(registered) is getattr(ours, name)


@each_name
def test_it_is_the_twin_of_the_keras_3_class(name):
    twin = getattr(keras_logits, name)
    assert getattr(ours, name).__doc__ == twin.__doc__
    assert getattr(ours, name) is not twin
