"""At the border of a rule: where one step to either side is another answer."""

import weakref

import keras
import numpy as np
import pytest
from keras import ops

from keras_logits import LogitsHead, SoftmaxCrossEntropy
from keras_logits.kernels import plan_of
from keras_logits.kernels.contract import Linear, LinearLogits
from keras_logits.maths.diagnosis import explain_class_ids
from keras_logits.maths.squash import Squash
from strategies import BACKEND
from test_figures import of_units

# Units: more than half is yes, and a logit above 0

STEP = float(np.finfo("float32").eps)
SMALL = float(np.finfo("float32").tiny)
RIGHT = [
    # label, logit, whether that is right
    (0.5, 0.0, True),
    (0.5, -SMALL, True),
    (0.5, SMALL, False),
    (0.5 + STEP, 0.0, False),
    (0.5 + STEP, SMALL, True),
    (0.5 - STEP, 0.0, True),
    (0.5 - STEP, SMALL, False),
    (0.0, 0.0, True),
    (1.0, 0.0, False),
]


@pytest.mark.parametrize(("label", "logit", "right"), RIGHT)
def test_a_unit_of_a_half_is_a_no_and_so_is_a_logit_of_0(label, logit, right):
    found = of_units(np.float32([label]), [logit])
    np.testing.assert_array_equal(found["accuracy"], [right])


# Class ids: what may be wrong with them

GUESSES = {
    "1 to 4": ([1, 2, 3, 4], None, r"Fix: labels - 1\. .* seem to start at 1"),
    "only 4": ([4], None, r"Fix: labels - 1\. .* seem to start at 1"),
    "a 0 that counts": ([0, 1, 2, 4], None, r"ignore_index=4 .*\nOr LogitsHead\(5\)"),
    "a 0 that does not": ([0, 1, 2, 4], [0, 1, 1, 1], "seem to start at 1"),
    "one more": ([1, 2, 3, 5], None, r"ignore_index=5 .*\nOr LogitsHead\(6\)"),
    "both": ([1, 2, 4, 5], None, r"Fix: LogitsHead\(6\), if there are 6"),
    "one below": ([-1, 1, 2, 4], None, "Fix: ignore_index=-1 .*if -1 marks padding"),
    "halves": ([1, 2.5, 3, 4], None, r"Fix: labels\.astype.*whole numbers"),
    "a hole": ([1, 2, np.nan, 4], None, "Fix: sample_weight=0 for positions"),
}


@pytest.mark.parametrize("case", GUESSES)
def test_bad_class_ids_are_explained_by_what_else_the_batch_holds(case):
    labels, counts, expected = GUESSES[case]
    labels = np.array(labels)
    counts = np.ones(labels.shape, bool) if counts is None else np.array(counts, bool)
    with pytest.raises(ValueError, match=expected):
        explain_class_ids(labels, counts, 4)


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [3], [1, 2, 3]])
def test_class_ids_up_to_the_last_class_are_good(labels):
    explain_class_ids(np.array(labels), np.ones(len(labels), bool), 4)


def number(tensor):
    return float(ops.convert_to_numpy(tensor))


# A fused loss by an axis that is counted from the left


@pytest.mark.parametrize("shape", [(6,), (2, 3)])
def test_a_fused_loss_takes_its_last_axis_by_either_number(shape):
    x = np.random.default_rng(0).normal(size=(*shape, 3)).astype("float32")
    labels = np.arange(6).reshape(shape) % 4
    head = LogitsHead(4)
    y_pred = head(x)
    expected = number(SoftmaxCrossEntropy(fused=False)(labels, y_pred))
    for axis in (-1, len(shape)):
        found = SoftmaxCrossEntropy(axis=axis, fused=True)(labels, y_pred)
        np.testing.assert_allclose(number(found), expected, 1e-6)
    for axis in range(len(shape)):
        with pytest.raises(ValueError, match=rf"Received: axis={axis}\. Only axis=-1"):
            SoftmaxCrossEntropy(axis=axis, fused=True)(labels, y_pred)


# What torch holds of a chunk

TOKENS, WIDTH, WORDS = 64, 4, 4096
CHUNK_OF_LOGITS = 4 * TOKENS * WORDS


def most_bytes_held(run):
    """The most that tensors made during a call held at one time."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Watch(TorchDispatchMode):
        now, most = 0, 0
        known: dict = {}  # noqa: RUF012

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            given = {id_of(x) for x in tree_leaves((args, kwargs)) if is_tensor(x)}
            made = function(*args, **(kwargs or {}))
            for x in filter(is_tensor, tree_leaves(made)):
                self.held(x, given)
            return made

        def held(self, x, given):
            key, size = id_of(x), x.untyped_storage().nbytes()
            if key in given or key in self.known:
                return
            self.known[key] = size
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(x.untyped_storage(), self.freed, key)

        def freed(self, key):
            self.now -= self.known.pop(key)

    def is_tensor(x):
        return hasattr(x, "untyped_storage")

    def id_of(x):
        return x.untyped_storage()._cdata

    with Watch() as watch:
        run()
    return watch.most


@pytest.mark.skipif(BACKEND != "torch", reason="XLA tells by itself")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"z_loss": 0.1},
        {"label_smoothing": 0.1, "class_weight": {0: 2.0}},
        {"label_smoothing": 0.1, "focal_gamma": 2.0},
    ],
)
def test_torch_holds_no_more_than_the_plan_says(options):
    import torch

    from keras_logits import kernels, linear_softmax_cross_entropy
    from keras_logits.maths.softmax import SoftmaxFormula

    rng = np.random.default_rng(0)
    features, kernel = (
        torch.tensor(rng.normal(size=shape).astype("float32"), requires_grad=True)
        for shape in ((TOKENS, WIDTH), (WIDTH, WORDS))
    )
    labels = torch.tensor(rng.integers(0, WORDS, TOKENS))

    def run():
        linear_softmax_cross_entropy(features, kernel, labels, **options)

    of_formula = {k: v for k, v in options.items() if k != "class_weight"}
    formula = SoftmaxFormula(True, WORDS, **of_formula)
    recipe = LinearLogits(Linear(features, kernel, None), Squash())
    planned = plan_of(recipe, kernels.buffers_of(formula))
    assert planned.chunks == 1
    most = most_bytes_held(run)
    of_gradient = 4 * WIDTH * (WORDS + TOKENS)
    assert most > CHUNK_OF_LOGITS
    assert most - of_gradient <= planned.expected_bytes
    # And the plan counts few that are never there.
    assert most > planned.expected_bytes - 3.5 * CHUNK_OF_LOGITS


# Labels that are not dense


@pytest.mark.skipif(BACKEND != "tensorflow", reason="of TensorFlow")
def test_ragged_and_sparse_labels_of_tensorflow_are_refused_in_a_sentence():
    import tensorflow as tf

    z = np.zeros((2, 3, 4), "float32")
    expected = r"`labels` must be dense.*\nReceived: labels that are {}, a {}\nFix: "
    with pytest.raises(ValueError, match=expected.format("ragged", "RaggedTensor")):
        SoftmaxCrossEntropy(True)(tf.ragged.constant([[1, 2], [0]]), z)
    with pytest.raises(ValueError, match=expected.format("sparse", "SparseTensor")):
        SoftmaxCrossEntropy(True)(tf.sparse.from_dense([[1, 2, 0], [0, 1, 1]]), z)


@pytest.mark.skipif(BACKEND != "torch", reason="of torch")
def test_nested_and_sparse_labels_of_torch_are_refused_in_a_sentence():
    import torch

    z = np.zeros((2, 3, 4), "float32")
    expected = r"`labels` must be dense.*\nReceived: labels that are {}, a .*\nFix: "
    nested = torch.nested.nested_tensor(
        [torch.tensor([1, 2]), torch.tensor([0])], layout=torch.jagged
    )
    with pytest.raises(ValueError, match=expected.format("ragged")):
        SoftmaxCrossEntropy(True)(nested, z)
    sparse = torch.tensor([[1, 2, 0], [0, 1, 1]]).to_sparse()
    with pytest.raises(ValueError, match=expected.format("sparse")):
        SoftmaxCrossEntropy(True)(sparse, z)


@pytest.mark.skipif(BACKEND != "jax", reason="of JAX")
def test_sparse_labels_of_jax_are_refused_in_a_sentence():
    import jax.numpy as jnp
    from jax.experimental.sparse import BCOO

    sparse = BCOO.fromdense(jnp.array([[1, 2, 0], [0, 1, 1]]))
    expected = r"must be dense.*\nReceived: labels that are sparse, a BCOO\nFix: tf"
    with pytest.raises(ValueError, match=expected):
        SoftmaxCrossEntropy(True)(sparse, np.zeros((2, 3, 4), "float32"))


@pytest.mark.skipif(BACKEND != "tensorflow", reason="of TensorFlow")
@pytest.mark.parametrize("kind", ["ids", "one-hot"])
def test_a_generator_that_tells_no_shapes_of_labels_trains(kind):
    """Whole numbers are class ids then, and floats distributions."""
    import tensorflow as tf

    x = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    ids = np.array([0, 1, 2, 1])
    labels = ids if kind == "ids" else np.eye(3, dtype="float32")[ids]
    data = tf.data.Dataset.from_generator(
        lambda: iter([(x, labels)]),
        output_signature=(
            tf.TensorSpec((None, 3), "float32"),
            tf.TensorSpec(None, labels.dtype),
        ),
    ).repeat()
    head = LogitsHead(3)
    model = keras.Sequential([keras.Input((3,)), head])
    model.compile(keras.optimizers.SGD(0.0), loss=SoftmaxCrossEntropy())
    how = {"steps_per_epoch": 1, "shuffle": False, "verbose": 0}
    found = model.fit(data, **how).history["loss"][0]
    z = ops.convert_to_numpy(head(x)).astype("float64")
    losses = np.logaddexp.reduce(z, -1) - z[np.arange(4), ids]
    np.testing.assert_allclose(found, losses.mean(), 1e-5)
