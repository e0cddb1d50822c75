"""What `linear_cross_entropy.py` runs in its hosts: one loss, or steps of `fit`.

Imports of frameworks are local: a host has one of them.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from side_by_side import Entry, Measured

Loss = Callable[..., Any]

FUSED = "keras_logits, fused"
PLAIN = "keras_logits, plain"
KERAS = "Keras"
PEERS = {
    "tensorflow": "tf.nn",
    "jax": "optax",
    "torch": "torch linear_cross_entropy",
}
TORCH_CHUNKED = "torch linear_cross_entropy, chunked"
TOKAMAX = "tokamax, xla"  # where it is installed; it has another form for TPUs alone
PRODUCTS = "the three products alone"
FORWARD = "keras_logits, fused, loss alone"


@dataclass(frozen=True)
class Problem:
    """Features `[tokens, width]` under a kernel `[width, classes]`."""

    tokens: int
    width: int
    classes: int
    valid: float = 1.0  # share of tokens whose weight is not 0
    dtype: str = "float32"  # of the features
    kernel_dtype: str = "float32"

    def __str__(self) -> str:
        sizes = f"{self.tokens} x {self.width} x {self.classes}"
        if self.dtype == "float32":
            return sizes
        return f"{sizes}, {self.dtype} features, {self.kernel_dtype} kernel"

    @property
    def logits_bytes(self) -> int:
        return 4 * self.tokens * self.classes

    def arrays(self) -> list[np.ndarray]:
        """Features, kernel, bias, labels and weights."""
        rng = np.random.default_rng(0)
        features = rng.standard_normal((self.tokens, self.width), "float32")
        kernel = rng.standard_normal((self.width, self.classes), "float32")
        kernel *= self.width**-0.5
        labels = rng.integers(0, self.classes, self.tokens).astype("int32")
        weights = (rng.random(self.tokens) < self.valid).astype("float32")
        return [features, kernel, np.zeros(self.classes, "float32"), labels, weights]


# Options of the fused loss, each of which is measured alone.
OPTIONS: dict[str, dict[str, Any]] = {
    "label_smoothing": {"label_smoothing": 0.1},
    "z_loss": {"z_loss": 1e-4},
    "softcap": {"softcap": 30.0},
    "class_weight": {"class_weight": {0: 2.0}},
    "bias": {"bias": True},
    "focal_gamma": {"focal_gamma": 2.0},
}


def prepare(message: Any) -> dict[str, Callable[[], Entry]]:
    """How to make each contender of a seat, given what was measured before it."""
    seat, before = message
    if seat["kind"] == "fit":
        import linear_fit

        return linear_fit.contenders(seat)
    contenders = {}
    for given in seat["contenders"]:
        contenders[given["name"]] = _maker(given, before)
    return contenders


def _maker(given: dict[str, Any], before: dict[str, Any]) -> Callable[[], Entry]:
    options = dict(OPTIONS.get(given.get("option", ""), {}))
    if "share_of" in given:
        name, share = given["share_of"]
        measured = Measured(*before[name])
        options["memory_budget"] = int(measured.temporaries * share)
    problem, form = Problem(*given["problem"]), given["form"]
    return lambda: contender(problem, form, options, given.get("chunk"))


def contender(
    problem: Problem, form: str, options: dict[str, Any], chunk: int | None = None
) -> Entry:
    import keras

    by_backend = {"tensorflow": by_tensorflow, "jax": by_jax, "torch": by_torch}
    with_bias = options.pop("bias", False)
    loss = products if form == PRODUCTS else loss_of(form, options, chunk)
    asked = () if form in (PRODUCTS, FORWARD) else (0, 1, 2) if with_bias else (0, 1)
    return by_backend[keras.config.backend()](problem, loss, asked, with_bias)


def loss_of(form: str, options: dict[str, Any], chunk: int | None) -> Loss:
    """A scalar of features, kernel, bias (or None), labels and weights."""
    import keras

    import keras_logits

    if form in (FUSED, FORWARD):

        def fused(x: Any, kernel: Any, bias: Any, labels: Any, weights: Any) -> Any:
            with rows_at_a_time(chunk):
                return keras_logits.linear_softmax_cross_entropy(
                    x, kernel, labels, bias=bias, sample_weight=weights, **options
                )

        return fused
    if form == PLAIN:
        ours = keras_logits.SoftmaxCrossEntropy(True, fused=False, **options)
        return lambda x, kernel, bias, labels, weights: ours(
            labels, as_the_head_does(x, kernel)
        )
    if form == KERAS:
        theirs = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        return lambda x, kernel, bias, labels, weights: theirs(labels, x @ kernel)
    peers = {
        "tf.nn": of_tf_nn,
        "optax": of_optax,
        TOKAMAX: of_tokamax,
        PEERS["torch"]: of_torch,
        TORCH_CHUNKED: of_torch_in_chunks,
    }
    return peers[form]


def as_the_head_does(x: Any, kernel: Any) -> Any:
    """Logits in at least float32, of factors in any precision."""
    from keras_logits import kernels
    from keras_logits.kernels.contract import Linear, LinearLogits
    from keras_logits.maths.squash import Squash

    return kernels.logits_of(LinearLogits(Linear(x, kernel, None), Squash()))


@contextmanager
def rows_at_a_time(chunk: int | None) -> Iterator[None]:
    """Traced under this, the plan takes `chunk` tokens at a time, whatever is best."""
    from keras_logits.kernels import plan

    usual = dict(plan.DEVICES)
    if chunk is not None:
        for name, device in usual.items():
            plan.DEVICES[name] = replace(device, rows=chunk, budget=2**40)
    try:
        yield
    finally:
        plan.DEVICES.update(usual)


def products(x: Any, kernel: Any, bias: Any, labels: Any, weights: Any) -> Any:
    """The least that any form has to do: logits, and a gradient of each factor."""
    from keras import ops

    logits = ops.matmul(x, kernel)
    by_features = ops.matmul(logits, ops.transpose(kernel))
    return by_features, ops.matmul(ops.transpose(x), logits)


def of_tf_nn(x: Any, kernel: Any, bias: Any, labels: Any, weights: Any) -> Any:
    import tensorflow as tf

    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, x @ kernel)
    return tf.reduce_mean(losses)


def of_optax(x: Any, kernel: Any, bias: Any, labels: Any, weights: Any) -> Any:
    import optax

    loss = optax.losses.softmax_cross_entropy_with_integer_labels
    return loss(x @ kernel, labels).mean()


def of_tokamax(x: Any, kernel: Any, bias: Any, labels: Any, weights: Any) -> Any:
    import tokamax

    del sys.argv[1:]  # which it reads as flags of its own
    return tokamax.linear_softmax_cross_entropy_loss(
        x, labels, kernel, reduction="mean", implementation="xla"
    )


def of_torch(x: Any, kernel: Any, bias: Any, labels: Any, weights: Any) -> Any:
    import torch

    return torch.nn.functional.linear_cross_entropy(x, kernel.T, labels.long())


def of_torch_in_chunks(
    x: Any, kernel: Any, bias: Any, labels: Any, weights: Any
) -> Any:
    import torch

    return torch.nn.functional.linear_cross_entropy(
        x, kernel.T, labels.long(), options=torch.nn.LinearCrossEntropyOptions()
    )


def by_tensorflow(
    problem: Problem, loss: Loss, asked: tuple[int, ...], with_bias: bool
) -> Entry:
    import tensorflow as tf

    x, kernel, bias, labels, weights = map(tf.constant, problem.arrays())
    arguments = [x, kernel, bias if with_bias else None, labels, weights]

    @tf.function(jit_compile=True)
    def step(*arguments: Any) -> Any:
        sources = [arguments[place] for place in asked]
        with tf.GradientTape() as tape:
            tape.watch(sources)
            value = loss(*arguments)
        return (value, *tape.gradient(value, sources)) if asked else value

    def run() -> None:
        # Reading one number waits for the whole result.
        tf.reshape(tf.nest.flatten(step(*arguments))[-1], (-1,))[0].numpy()

    return Entry(run, lambda: temporaries_of(step, arguments))


def temporaries_of(step: Any, arguments: list[Any]) -> int:
    """What the buffer assignment of TensorFlow's XLA keeps for temporaries."""
    from tensorflow.compiler.xla.service import hlo_pb2

    compiler_ir = step.experimental_get_compiler_ir(*arguments)
    program = hlo_pb2.HloProto.FromString(
        compiler_ir(stage="optimized_hlo_proto_serialized")
    )
    return sum(
        buffer.size
        for buffer in program.buffer_assignment.buffer_allocations
        if not (
            buffer.is_entry_computation_parameter
            or buffer.maybe_live_out
            or buffer.is_constant
            or buffer.is_thread_local
        )
    )


def by_jax(
    problem: Problem, loss: Loss, asked: tuple[int, ...], with_bias: bool
) -> Entry:
    import jax

    x, kernel, bias, labels, weights = arrays_of_jax(problem)
    arguments = [x, kernel, bias if with_bias else None, labels, weights]

    def of_one_dtype(x: Any, kernel: Any, *rest: Any) -> Any:
        return loss(x, kernel.astype(x.dtype), *rest)

    step = jax.jit(jax.value_and_grad(of_one_dtype, asked) if asked else of_one_dtype)
    compiled: list[Any] = []

    def run() -> None:
        if not compiled:
            compiled.append(step.lower(*arguments).compile())
        jax.block_until_ready(compiled[0](*arguments))

    return Entry(run, lambda: int(compiled[0].memory_analysis().temp_size_in_bytes))


@functools.lru_cache(1)
def arrays_of_jax(problem: Problem) -> list[Any]:
    """The same for all contenders that share a process."""
    import jax

    x, kernel, *rest = map(jax.numpy.asarray, problem.arrays())
    return [x.astype(problem.dtype), kernel.astype(problem.kernel_dtype), *rest]


def by_torch(
    problem: Problem, loss: Loss, asked: tuple[int, ...], with_bias: bool
) -> Entry:
    import torch

    x, kernel, bias, labels, weights = map(torch.tensor, problem.arrays())
    arguments = [x, kernel, bias if with_bias else None, labels, weights]
    sources = [arguments[place].requires_grad_() for place in asked]

    def run() -> None:
        if asked:
            torch.autograd.grad(loss(*arguments), sources)
        else:
            loss(*arguments)

    return Entry(run)
