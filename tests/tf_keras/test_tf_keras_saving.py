"""A Keras 2 model with a tied head stays tied, in copies and in files of all kinds."""

import numpy as np
import pytest
import tf_keras as keras

from keras_logits.tf_keras import LogitsHead, SoftmaxCrossEntropy

WORDS = np.random.default_rng(5).integers(1, 5, (4, 7))


def tied_model():
    """Words in, logits of the same words out, through one matrix."""
    keras.utils.set_random_seed(3)
    table = keras.layers.Embedding(5, 6, name="table")
    inputs = keras.Input((7,), dtype="int32")
    features = keras.layers.Dense(6, "tanh")(table(inputs))
    model = keras.Model(inputs, LogitsHead(5, tied_to=table, name="head")(features))
    model.compile(keras.optimizers.SGD(1.0), SoftmaxCrossEntropy(), run_eagerly=True)
    model.train_on_batch(WORDS, WORDS)
    return model


def assert_tied(model):
    assert model.get_layer("head").tied_to is model.get_layer("table")
    assert model.count_params() == 5 * 6 + (6 * 6 + 6) + 5


def by_weights(model):
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


COPIES = {
    "clone_model": by_weights,
    "from_config": lambda model: keras.Model.from_config(model.get_config()),
    "to_json": lambda model: keras.models.model_from_json(model.to_json()),
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_of_a_tied_model_is_tied(copied):
    model = tied_model()
    copy = copied(model)
    assert_tied(copy)
    assert copy.get_layer("table") is not model.get_layer("table")


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("name", ["m.keras", "m.h5", "m"])
def test_a_tied_model_is_tied_when_loaded(name, tmp_path):
    model = tied_model()
    model.save(tmp_path / name, **({"save_format": "tf"} if name == "m" else {}))
    loaded = keras.models.load_model(tmp_path / name)
    assert_tied(loaded)
    np.testing.assert_array_equal(loaded(WORDS), model(WORDS))


def test_a_gradient_comes_to_a_tied_matrix_from_both_uses():
    model = tied_model()
    before = model.get_layer("table").get_weights()[0]
    model.train_on_batch(np.full_like(WORDS, 1), np.full_like(WORDS, 1))
    moved = abs(model.get_layer("table").get_weights()[0] - before).max(-1)
    assert (moved > 0).all()  # word 1 as input, all of them as outputs
