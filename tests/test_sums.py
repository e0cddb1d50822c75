"""Sums over blocks of classes merge to those over all of them."""

import functools

import keras
import numpy as np
import pytest
from keras import ops

from keras_logits.maths import sums
from keras_logits.maths.blocks import fold_blocks
from keras_logits.maths.sums import SCALE, merged, of_no_classes, sums_of

ROWS, CLASSES = 6, 40
LEAST = float(np.finfo("float32").min)


CASES = {
    "usual": lambda z: z,
    "far apart": lambda z: 1e4 * z,
    "far away": lambda z: z + 1e4,
    "one block closed": lambda z: np.where(np.arange(CLASSES) < 16, -np.inf, z),
    "some closed": lambda z: np.where(z < 0.5, -np.inf, z),
    "all closed": lambda z: np.full_like(z, -np.inf),
    "one block at the least float": lambda z: np.where(
        np.arange(CLASSES) >= 17, LEAST, z
    ),
}
OPTIONS = {
    "plain": {},
    "smoothed": {"smoothed": True},
    "entropy": {"entropy": True},
    "all": {"smoothed": True, "entropy": True},
}


def expected(z, weights):
    """In float64, by the words of the definition."""
    z = z.astype("float64")
    open_ = z > -np.inf
    highest = z.max(-1, keepdims=True)
    shifted = z - np.where(open_.any(-1, keepdims=True), highest, 0.0)
    exp = np.exp(shifted)

    def total(terms):
        return np.where(open_, terms, 0.0).sum(-1, keepdims=True)

    with np.errstate(invalid="ignore"):
        return {
            "highest": highest,
            "total": exp.sum(-1, keepdims=True),
            "drop": total(exp * shifted),
            "count": total(np.ones_like(z)),
            "share": total(np.broadcast_to(weights, z.shape)),
            "drawn": SCALE * total(weights * shifted),
        }


@functools.cache
def whole_and_merged(weighted, options):
    """The sums over all classes, and those of blocks, merged."""

    def run(z, weights):
        def of(start, stop):
            some = weights[None, start:stop] if weighted else None
            return sums_of(z[:, start:stop], -1, some, **OPTIONS[options])

        whole, blocks = of(0, CLASSES), of_no_classes(of(0, 1))
        for start, stop in ((0, 8), (8, 16), (16, 17), (17, 40)):
            blocks = merged(blocks, of(start, stop))
        return whole, blocks

    if keras.config.backend() != "jax":
        return run
    import jax

    return jax.jit(run)  # which would compile each operation at each size


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("weighted", [False, True], ids=["", "class weights"])
@pytest.mark.parametrize("case", CASES)
def test_sums_of_blocks_merge_to_those_of_all(case, weighted, options):
    z = np.random.default_rng(3).normal(size=(ROWS, CLASSES)).astype("float32")
    z = CASES[case](z).astype("float32")
    weights = np.random.default_rng(4).uniform(0.5, 2, CLASSES).astype("float32")

    tensors = ops.convert_to_tensor(z), ops.convert_to_tensor(weights)
    whole, blocks = whole_and_merged(weighted, options)(*tensors)
    assert blocks.keys() == whole.keys()
    wanted = expected(z, weights if weighted else np.ones(CLASSES))
    wanted = {name: sums.astype("float32") for name, sums in wanted.items()}
    for name in whole:
        least = 1e-5 * (SCALE if name == "drawn" else 1.0)
        for found in (whole, blocks):
            found = ops.convert_to_numpy(found[name])
            np.testing.assert_allclose(found, wanted[name], 2e-6, least, err_msg=name)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("case", CASES)
def test_a_block_is_summed_without_blocks_of_its_own(case, options, monkeypatch):
    z = np.random.default_rng(3).normal(size=(ROWS, CLASSES)).astype("float32")
    z = CASES[case](z).astype("float32")
    is_open = z > -np.inf
    if (is_open == is_open[0]).all():
        is_open = is_open[0]  # as a chunk knows it: of the classes, for all tokens
    z = ops.convert_to_tensor(z)
    whole = sums_of(z, -1, **OPTIONS[options])
    loops = []

    def counted(*arguments):
        loops.append(1)
        return fold_blocks(*arguments)

    monkeypatch.setattr(sums, "BLOCK", 16)
    monkeypatch.setattr(sums, "fold_blocks", counted)
    sums_of(z, -1, **OPTIONS[options])
    assert bool(loops) == (options != "plain")
    loops.clear()
    is_open = ops.convert_to_tensor(is_open)
    found = sums_of(z, -1, open_classes=is_open, **OPTIONS[options])
    assert not loops
    for name, values in whole.items():
        same = ops.broadcast_to(found[name], values.shape)
        np.testing.assert_array_equal(same, values, err_msg=name)
