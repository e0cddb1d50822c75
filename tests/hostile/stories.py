"""Stories of a user who changes things between the head and the loss.

A story is drawn from small steps: how the logits are made, what changes then, how the
code is run, and which loss is asked for. It ends well if the loss is that of the tensor
at hand, computed in float64, or an error, or NaN. Where nothing was changed an error is
no good end either.
"""

import copy
import os
import threading
import warnings
from dataclasses import dataclass

import keras
import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from keras import ops

from keras_logits import LogitsHead, MarkLogits, SoftmaxCrossEntropy

BACKEND = keras.config.backend()
ROWS, WIDTH, CLASSES = 5, 3, 7
EXAMPLES = int(os.environ.get("HOSTILE_EXAMPLES", "0"))
DEFAULT_EXAMPLES = {"tensorflow": 60, "jax": 40, "torch": 80}[BACKEND]


def hostile():
    return settings(
        max_examples=EXAMPLES or DEFAULT_EXAMPLES,
        deadline=None,
        derandomize=not EXAMPLES,
        phases=[Phase.generate],  # a story is short already
        database=None,
        suppress_health_check=list(HealthCheck),
    )


# How logits are made


class OwnWay(LogitsHead):
    def call(self, inputs, returns=None):
        return super().call(inputs, returns) * 1.0


class OfOtherFeatures(LogitsHead):
    """Hands on the very tensor that the head makes, of features that it changed."""

    def call(self, inputs, returns=None):
        return super().call(inputs * 2.0, returns)


class ChangedByItself(LogitsHead):
    def logits_of(self, inputs):
        logits = super().logits_of(inputs)
        if BACKEND == "torch":
            logits.mul_(2.0)
        return logits


class MarkedDense(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.dense, self.mark = keras.layers.Dense(CLASSES), MarkLogits()
        self.dense.build((None, WIDTH))

    def build(self, input_shape):
        self.built = True

    def call(self, inputs):
        return self.mark(self.dense(inputs))

    def __getattr__(self, name):
        if name in ("kernel", "bias"):
            return getattr(self.dense, name)
        return super().__getattr__(name)


def tied():
    embedding = keras.layers.Embedding(CLASSES, WIDTH)
    embedding.build(None)
    head = LogitsHead(CLASSES, tied_to=embedding)
    head.build((None, WIDTH))
    return head


HEADS = {
    "plain": lambda: LogitsHead(CLASSES),
    "no bias": lambda: LogitsHead(CLASSES, use_bias=False),
    "soft-cap": lambda: LogitsHead(CLASSES, softcap=2.0, temperature=0.5),
    "probabilities": lambda: LogitsHead(CLASSES, returns="probabilities"),
    "bfloat16": lambda: LogitsHead(CLASSES, dtype="mixed_bfloat16"),
    "tied": tied,
    "frozen": lambda: LogitsHead(CLASSES, trainable=False),
    "own way": lambda: OwnWay(CLASSES),
    "other features": lambda: OfOtherFeatures(CLASSES),
    "changed by itself": lambda: ChangedByItself(CLASSES),
    "marked": MarkedDense,
}


def kernel_of(head):
    tied_to = getattr(head, "tied_to", None)
    return head.kernel if tied_to is None else tied_to.embeddings


# What changes between head and loss: on the scene, as a loss will find it


@dataclass
class Scene:
    """What a change can lay hands on."""

    head: object
    x: object
    y_pred: object
    memory: np.ndarray  # which the features may share
    scope: object = None  # in which the loss is called


def nothing(scene):
    """The case that has to work."""


def another_call(scene):
    scene.head(scene.x * 3.0)


def another_call_without_a_gradient(scene):
    scene.head(ops.stop_gradient(scene.x))


def a_kernel_assigned(scene):
    kernel = kernel_of(scene.head)
    kernel.assign(kernel * 3.0)


def a_kernel_assigned_in_a_thread(scene):
    thread = threading.Thread(target=a_kernel_assigned, args=(scene,))
    thread.start()
    thread.join()


def other_weights_in_scope(scene):
    kernel = kernel_of(scene.head)
    other = ops.convert_to_tensor(np.full(kernel.shape, 0.1, "float32"))
    scene.scope = keras.StatelessScope([(kernel, other)])


def shared_memory(scene):
    scene.memory *= 3.0


def a_new_tensor(scene):
    scene.y_pred = scene.y_pred * 2.0


def a_new_tensor_of_the_same_values(scene):
    scene.y_pred = ops.copy(scene.y_pred)


def rows_turned_around(scene):
    scene.y_pred = ops.flip(scene.y_pred, axis=0)


def a_softmax(scene):
    scene.y_pred = ops.softmax(scene.y_pred)


def a_copied_object(scene):
    scene.y_pred = copy.copy(scene.y_pred)


CHANGES = [
    nothing,
    another_call,
    another_call_without_a_gradient,
    a_new_tensor,
    a_new_tensor_of_the_same_values,
    rows_turned_around,
    a_softmax,
]
EAGER_CHANGES = [
    a_kernel_assigned,
    a_kernel_assigned_in_a_thread,
    other_weights_in_scope,
    shared_memory,
    a_copied_object,
]

if BACKEND == "tensorflow":
    CHANGES += [a_kernel_assigned]

if BACKEND == "torch":
    import torch

    def logits_scaled(scene):
        scene.y_pred.mul_(3.0)

    def logits_masked(scene):
        scene.y_pred[:, 4:] = -1e9

    def logits_through_a_view(scene):
        scene.y_pred.view(-1)[::2].add_(1.0)

    def logits_detached(scene):
        scene.y_pred.detach().mul_(0.5)

    def logits_uncounted(scene):
        scene.y_pred.data.mul_(0.5)

    def a_row_of_features(scene):
        scene.x[1:] = 0.0

    def features_uncounted(scene):
        scene.x.data.mul_(2.0)

    def a_kernel_in_place(scene):
        kernel_of(scene.head).value.mul_(3.0)

    def a_kernel_uncounted(scene):
        kernel_of(scene.head).value.data.mul_(3.0)

    def a_bias_in_place(scene):
        bias = getattr(scene.head, "bias", None)
        if bias is not None:
            bias.value.add_(torch.arange(CLASSES))

    def written_elsewhere(scene):
        torch.softmax(scene.y_pred, -1, out=scene.y_pred)

    def a_hook(scene):
        if scene.y_pred.requires_grad:
            scene.y_pred.register_hook(lambda gradient: gradient * 0.5)

    CHANGES += [
        logits_scaled,
        logits_masked,
        logits_through_a_view,
        logits_detached,
        logits_uncounted,
        a_row_of_features,
        features_uncounted,
        a_kernel_in_place,
        a_kernel_uncounted,
        a_bias_in_place,
    ]
    EAGER_CHANGES += [written_elsewhere, a_hook]

HARMLESS = {
    nothing,
    another_call,
    another_call_without_a_gradient,
    a_kernel_assigned,
    a_kernel_assigned_in_a_thread,
    other_weights_in_scope,
    shared_memory,
}
"""What leaves the tensor at hand, and its mark, as they were."""


# How it is run


def as_tensor(values):
    return ops.convert_to_tensor(values)


def eagerly(step, x, y):
    return step(x, y)


RUNS = {"eager": eagerly}

if BACKEND == "tensorflow":
    import tensorflow as tf

    def tf_function(step, x, y, **options):
        return tf.function(step, autograph=False, **options)(x, y)

    def map_fn(step, x, y):
        """The same batch, three times, in a loop."""
        found = tf.map_fn(
            lambda _: step(x, y), tf.range(3), fn_output_signature=(tf.float32,) * 2
        )
        return found[0][-1], found[1][-1]

    def in_a_branch(step, x, y):
        return tf.function(
            lambda x, y: tf.cond(
                tf.size(x) > 0, lambda: step(x, y), lambda: (0.0, tf.zeros_like(x))
            ),
            autograph=False,
        )(x, y)

    RUNS |= {
        "graph": tf_function,
        "jit": lambda *story: tf_function(*story, jit_compile=True),
        "a loop": lambda *story: map_fn(*story),
        "recomputed": lambda step, x, y: tf.recompute_grad(step)(x, y),
        "nested graphs": lambda step, x, y: tf_function(
            tf.function(step, autograph=False), x, y
        ),
    }

if BACKEND == "jax":
    import jax

    def scanned(step, x, y):
        _, found = jax.lax.scan(lambda c, _: (c, step(x, y)), 0.0, None, length=3)
        return found[0][-1], found[1][-1]

    def derived_within(step, x, y):
        def value(x):
            return step(x, y)

        value, at_hand = jax.value_and_grad(value, has_aux=True)(x)[0]
        return value, at_hand

    RUNS |= {
        "jit": lambda step, x, y: jax.jit(step)(x, y),
        "grad": derived_within,
        "jit of grad": lambda step, x, y: jax.jit(
            lambda x, y: derived_within(step, x, y)
        )(x, y),
        "vmap": lambda step, x, y: jax.tree.map(
            lambda a: a[1], jax.vmap(step)(ops.stack([x, x]), ops.stack([y, y]))
        ),
        "checkpoint": lambda step, x, y: jax.checkpoint(step)(x, y),
        "scan": scanned,
    }

if BACKEND == "torch":

    def torch_compiled(step, x, y, backend="eager"):
        torch._dynamo.reset()
        return torch.compile(step, backend=backend)(x, y)

    def without_gradients(step, x, y, mode=torch.no_grad):
        with mode():
            return step(x, y)

    RUNS |= {
        "no_grad": without_gradients,
        "inference": lambda *s: without_gradients(*s, mode=torch.inference_mode),
        "compiled": torch_compiled,
        "compiled as a graph": lambda *s: torch_compiled(*s, backend="aot_eager"),
        "checkpointed": lambda step, x, y: torch.utils.checkpoint.checkpoint(
            step, x, y, use_reentrant=False
        ),
    }
    if os.environ.get("HOSTILE_INDUCTOR"):  # which writes C++, for seconds each time
        RUNS = {"compiled to C++": lambda *s: torch_compiled(*s, backend="inductor")}
COMPILED = {"compiled", "compiled as a graph", "compiled to C++"}


# A story


@dataclass(frozen=True)
class Story:
    head: str
    changes: tuple
    run: str
    fused: object
    split: bool  # head outside of the compiled code, and loss inside
    seed: int

    @property
    def is_harmless(self):
        return set(self.changes) <= HARMLESS and not self.split

    def tell(self):
        """The loss, and that of the tensor at hand in float64."""
        keras.utils.set_random_seed(self.seed)
        rng = np.random.default_rng(self.seed)
        memory = rng.normal(size=(ROWS, WIDTH)).astype("float32")
        labels = as_tensor(rng.integers(0, CLASSES, ROWS))
        x = torch.from_numpy(memory) if BACKEND == "torch" else as_tensor(memory)
        if self.run != "eager":
            x = x * 1.0  # compiled code is not promised to see shared memory
        head = HEADS[self.head]()
        if not head.built:
            head.build((None, WIDTH))
        loss = SoftmaxCrossEntropy(fused=self.fused)
        made = head(x) if self.split else None

        def step(x, labels):
            scene = Scene(head, x, head(x) if made is None else made, memory)
            for change in self.changes:
                change(scene)
            if scene.scope is None:
                value = loss(labels, scene.y_pred)
            else:
                with scene.scope:
                    value = loss(labels, scene.y_pred)
            return value, ops.cast(ops.stop_gradient(scene.y_pred), "float32")

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value, at_hand = RUNS[self.run](step, x, labels)
        value, at_hand = (
            ops.convert_to_numpy(ops.stop_gradient(v)) for v in (value, at_hand)
        )
        return float(value), self.loss_of(at_hand, ops.convert_to_numpy(labels))

    def loss_of(self, at_hand, labels):
        scores = at_hand.astype("float64")
        own = scores[np.arange(ROWS), labels]
        if self.head == "probabilities" and a_softmax not in self.changes:
            if own.min() < np.finfo("float32").tiny:
                return np.inf  # float32 has lost what the loss still knows
            return np.mean(-np.log(own))
        return np.mean(np.logaddexp.reduce(scores, -1) - own)


def changes_for(run):
    if run == "eager":
        return [*CHANGES, *EAGER_CHANGES]
    if BACKEND == "torch" and run not in COMPILED:
        return [*CHANGES, a_kernel_assigned]
    return CHANGES


def stories():
    def of_run(run):
        return st.builds(
            Story,
            head=st.sampled_from(sorted(HEADS)),
            changes=st.lists(
                st.sampled_from(changes_for(run)), min_size=0, max_size=2
            ).map(tuple),
            run=st.just(run),
            fused=st.sampled_from(["auto", True, False]),
            split=st.booleans() if run != "eager" else st.just(False),
            seed=st.integers(0, 1000),
        )

    # Tracing by torch takes a hundred times as long as the rest of a story.
    quick = sorted(set(RUNS) - COMPILED)
    return st.sampled_from([*quick * 2, *sorted(COMPILED & set(RUNS))]).flatmap(of_run)
