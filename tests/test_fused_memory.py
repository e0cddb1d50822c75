"""What XLA makes of the fused pass: no buffer of all logits, and no product in vain."""

import re

import keras
import numpy as np
import pytest
from keras import ops

from budgets import budget_for, columns_at_a_time, planned_for
from keras_logits import (
    LogitsHead,
    SoftmaxCrossEntropy,
    linear_softmax_cross_entropy,
    softmax_cross_entropy,
)
from keras_logits.kernels import plan
from keras_logits.kernels.contract import Linear, LinearLogits
from keras_logits.kernels.loop import buffers_of
from keras_logits.maths.figures import FIGURES
from keras_logits.maths.softmax import SoftmaxFormula
from keras_logits.maths.squash import Squash
from keras_logits.maths.sums import BLOCK
from keras_logits.options import SoftmaxOptions
from keras_logits.tasks import SoftmaxTask

BACKEND = keras.config.backend()
pytestmark = pytest.mark.skipif(BACKEND == "torch", reason="XLA compiles no torch")
of_jax = pytest.mark.skipif(BACKEND != "jax", reason="TensorFlow does not tell")
TOKENS, WIDTH, WORDS, CHUNK = 96, 12, 640, 8
RNG = np.random.default_rng(0)
ARRAYS = {
    "features": RNG.normal(size=(TOKENS, WIDTH)).astype("float32"),
    "kernel": RNG.normal(size=(WIDTH, WORDS)).astype("float32"),
    "bias": RNG.normal(size=WORDS).astype("float32"),
    "labels": RNG.integers(0, WORDS, TOKENS).astype("int32"),
}
LINEAR = ("features", "kernel", "bias")
OPTIONS = {
    "plain": {},
    "every option": {
        "class_weight": {0: 2.0},
        "label_smoothing": 0.1,
        "focal_gamma": 2.0,
        "z_loss": 1e-3,
        "ignore_index": 3,
        "softcap": 5.0,
        "temperature": 2.0,
    },
    "each position": {"reduction": None},
}


@pytest.fixture(autouse=True, scope="module")
def few_columns():
    """A kernel in several blocks, and no rest, which would be a product of its own."""
    with columns_at_a_time(64):
        yield


def fused(features, kernel, bias, labels, **options):
    return linear_softmax_cross_entropy(
        features,
        kernel,
        labels,
        bias=bias,
        memory_budget=budget_for(CHUNK, WORDS, WIDTH),
        **options,
    )


def plain(features, kernel, bias, labels):
    return softmax_cross_entropy(labels, features @ kernel + bias)


# Programs


def program(function, asked=LINEAR, **options):
    """The optimised HLO of a function and of its gradients by what is asked for."""
    return {"tensorflow": of_tensorflow, "jax": of_xla}[BACKEND](
        lambda **arrays: function(**arrays, **options), asked
    )


def of_tensorflow(function, asked):
    import tensorflow as tf

    @tf.function(autograph=False, jit_compile=True)
    def run(arrays):
        if not asked:
            return function(**arrays)
        wanted = [arrays[name] for name in asked]
        with tf.GradientTape() as tape:
            tape.watch(wanted)
            total = tf.reduce_sum(function(**arrays))
        return total, tape.gradient(total, wanted)

    tensors = {name: tf.constant(array) for name, array in ARRAYS.items()}
    return run.experimental_get_compiler_ir(tensors)(stage="optimized_hlo")


def of_xla(function, asked):
    return compiled(function, asked, ARRAYS).as_text()


def compiled(function, asked, arrays):
    import jax

    def run(wanted, rest):
        return function(**wanted, **rest).sum()

    wanted = {name: arrays[name] for name in asked}
    rest = {name: arrays[name] for name in arrays if name not in asked}
    run = jax.value_and_grad(run) if asked else run
    return jax.jit(run).lower(wanted, rest).compile()


def largest(text):
    """The elements of the largest array in a program."""
    shapes = re.findall(r"\b(?:pred|[a-z]+\d+)\[([\d,]+)\]", text)
    return max(np.prod([int(size) for size in shape.split(",")]) for shape in shapes)


def products(text):
    """How many products of a chunk's logits' size a program has."""
    return len(re.findall(r" dot\(", text))


# What they hold


@pytest.mark.parametrize("options", OPTIONS)
def test_no_buffer_holds_all_logits(options):
    text = program(fused, **OPTIONS[options])
    assert largest(text) <= WIDTH * WORDS < TOKENS * WORDS


def test_the_plain_path_is_seen_to_hold_them():
    assert largest(program(plain)) == TOKENS * WORDS


# Of a chunk's logits times a kernel: forward, by features, by kernel
PRODUCTS = {
    (): 1,
    ("bias",): 1,
    ("features",): 2,
    ("kernel", "bias"): 2,
    LINEAR: 3,
}


@pytest.mark.parametrize("asked", PRODUCTS, ids="-".join)
def test_what_nobody_asks_for_costs_no_product(asked):
    assert products(program(fused, asked)) == PRODUCTS[asked]


def test_values_of_positions_cost_one_product_more():
    assert products(program(fused, reduction=None)) == 4


# Whole models


def language_model(loss):
    model = keras.Sequential(
        [
            keras.Input((TOKENS // 4,), dtype="int32"),
            keras.layers.Embedding(5, WIDTH),
            LogitsHead(WORDS),
        ]
    )
    model.compile(keras.optimizers.SGD(0.1), loss=loss)
    x = np.zeros((4, TOKENS // 4), "int32")
    return model, x, x


def step_of_jax(model, x, y):
    import jax

    model.fit(x, y, epochs=1, verbose=0)
    state = [
        [v.value for v in variables]
        for variables in (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )
    ]
    return jax.jit(model.train_step).lower(state, (x, y)).compile().as_text()


def step_of_tensorflow(model, x, y):
    import tensorflow as tf

    model.optimizer.build(model.trainable_variables)
    model.train_on_batch(x, y)
    step = tf.function(lambda x, y: model.train_step((x, y)), jit_compile=True)
    ir = step.experimental_get_compiler_ir(tf.constant(x), tf.constant(y))
    return ir(stage="optimized_hlo")


@pytest.mark.parametrize("is_fused", [True, False], ids=["fused", "plain"])
def test_a_training_step_holds_all_logits_only_if_it_is_plain(is_fused):
    loss = SoftmaxCrossEntropy(
        fused=is_fused, memory_budget=budget_for(CHUNK, WORDS, WIDTH)
    )
    step = {"tensorflow": step_of_tensorflow, "jax": step_of_jax}[BACKEND]
    size = largest(step(*language_model(loss)))
    assert size <= WIDTH * WORDS if is_fused else size == TOKENS * WORDS


# Memory as XLA counts it


def temporaries(
    tokens,
    width=8,
    words=512,
    budget=None,
    reports=(),
    softcap=None,
    with_bias=True,
    **options,
):
    """Bytes beside inputs and results, and what the plan expects."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(tokens, width)).astype("float32")
    kernel = rng.normal(size=(width, words)).astype("float32")
    labels = rng.integers(0, words, tokens).astype("int32")
    bias = rng.normal(size=words).astype("float32")
    arrays = {"features": features, "kernel": kernel, "bias": bias, "labels": labels}
    hot = options.pop("one_hot", False)

    def run(features, kernel, bias, labels):
        labels = ops.one_hot(labels, words) if hot else labels
        linear = Linear(features, kernel, bias if with_bias else None)
        recipe = LinearLogits(linear, Squash(softcap), False, budget)
        task = SoftmaxTask(labels, recipe, SoftmaxOptions(**options))
        return task.weighted(ops.ones(tokens), True, reports).value

    made = compiled(run, LINEAR, arrays)
    formula = SoftmaxFormula(not hot, words, **options)
    expected = plan.plan(
        tokens,
        words,
        budget=budget,
        width=width,
        buffers=buffers_of(formula),
    ).expected_bytes
    return made.memory_analysis().temp_size_in_bytes, expected


@of_jax
def test_memory_is_what_the_plan_expects_and_does_not_grow_with_tokens():
    rows = plan.DEVICES["cpu"].rows
    few, expected = temporaries(2 * rows, words=4096)
    many, the_same = temporaries(8 * rows, words=4096)
    assert expected == the_same
    assert 0.9 * expected < few <= 1.1 * expected
    # A token has a place in the order, its weight and its loss, but no logits.
    assert many - few <= 16 * 6 * rows


@of_jax
@pytest.mark.parametrize("reports", [(), FIGURES], ids=["", "reports"])
@pytest.mark.parametrize(
    "options",
    [
        {"z_loss": 1e-3},
        {"label_smoothing": 0.1},
        {"focal_gamma": 2.0},
        {"label_smoothing": 0.1, "focal_gamma": 2.0},
        {"one_hot": True},
        {"one_hot": True, "focal_gamma": 2.0},
    ],
    ids=", ".join,
)
def test_what_options_and_reports_cost_is_in_the_plan(options, reports):
    words = 8 * BLOCK
    size, expected = temporaries(512, words=words, reports=reports, **options)
    labels = plan.FLOAT * 512 * words * options.get("one_hot", False)
    # What is summed goes through arrays of a block of words.
    assert 0.75 * expected < size - labels <= 1.1 * expected


@of_jax
def test_a_soft_cap_keeps_no_array_of_its_own():
    # A bias would hide it: scores with and without one are two arrays anyway.
    of = {"words": 8 * BLOCK, "with_bias": False}
    assert temporaries(512, softcap=2.0, **of)[0] <= temporaries(512, **of)[0] + 2**14


@of_jax
def test_no_product_of_the_kernels_size_lies_beside_its_gradient():
    size, expected = temporaries(256, width=256, budget=2**18)
    assert size <= expected + 2**14 < plan.FLOAT * 256 * 512


def exported(platform, arrays):
    import jax

    with planned_for("accelerator"):
        run = jax.jit(jax.value_and_grad(fused, argnums=(0, 1, 2)))
        made = jax.export.export(run, platforms=[platform])(*arrays)
    assert made.platforms == (platform,)
    return made.mlir_module()


@of_jax
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_the_pass_exports_for_machines_that_are_not_here(platform):
    found = largest_of_stablehlo(exported(platform, ARRAYS.values()))
    assert found <= WIDTH * WORDS


@of_jax
@pytest.mark.parametrize(
    ("half", "precision", "dtype"),
    [
        ("bfloat16", None, "bf16"),
        ("bfloat16", "default", "bf16"),
        ("bfloat16", "bfloat16", "bf16"),
        ("bfloat16", "tensorfloat32", "f32"),
        ("bfloat16", "float32", "f32"),
        ("float16", None, "f32"),
    ],
)
def test_an_accelerator_multiplies_in_bfloat16_unless_it_is_told_not_to(
    half, precision, dtype
):
    """In float32 a pass takes 1.8 times as long or more there."""
    import jax

    features, kernel, *rest = ARRAYS.values()
    halves = (features.astype(half), kernel.astype(half))
    with jax.default_matmul_precision(precision):
        program = exported("cuda", (*halves, *rest))
    products = [
        line for line in program.splitlines() if "stablehlo.dot_general" in line
    ]
    factors = [re.findall(r"x([a-z]+\d+)>", line)[:2] for line in products]
    short = {"bfloat16": "bf16", "float16": "f16"}[half]
    assert factors == [[short, short], [dtype, dtype], [dtype, dtype]]


@of_jax
def test_the_device_is_the_one_that_jax_was_told_to_use(monkeypatch):
    """XLA for CPUs cannot multiply as an accelerator is told to."""
    import jax

    from keras_logits.kernels import jax as body

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert body.device() == "accelerator"
    for cpu in ("cpu", jax.devices("cpu")[0]):
        with jax.default_device(cpu):
            assert body.device() == "cpu"


def largest_of_stablehlo(text):
    shapes = re.findall(r"tensor<([\dx]+)x[a-z]", text)
    return max(np.prod([int(size) for size in shape.split("x")]) for shape in shapes)
