"""How many tokens the fused pass takes at a time: plain arithmetic."""

import subprocess
import sys
from dataclasses import replace
from itertools import product

import pytest

from keras_logits.kernels.plan import (
    BUFFERS,
    DEVICES,
    FEWEST_COLUMNS,
    FLOAT,
    Plan,
    plan,
)

pytestmark = pytest.mark.any_backend
MIB = 2**20
SHAPES = list(product((1, 7, 256, 257, 1000, 8192, 30000), (2, 50257, 65536)))
CPU = DEVICES["cpu"]
each_shape = pytest.mark.parametrize(("tokens", "vocabulary"), SHAPES)
each_device = pytest.mark.parametrize("device", DEVICES)


@each_device
@each_shape
def test_the_chunks_hold_all_tokens_and_none_is_empty(tokens, vocabulary, device):
    made = plan(tokens, vocabulary, device=device)
    assert (made.chunks - 1) * made.chunk < tokens <= made.chunks * made.chunk


@each_device
@each_shape
def test_chunks_are_even(tokens, vocabulary, device):
    """All are padded to one size: no smaller one would need as few of them."""
    made = plan(tokens, vocabulary, device=device)
    assert made.chunk == 1 or made.chunks * (made.chunk - 1) < tokens


def bytes_of(tokens, vocabulary, width=0, columns=None):
    """The logits, three times the features, and of a block logits and kernels."""
    columns = min(columns or CPU.columns, vocabulary)
    of_tokens = BUFFERS * vocabulary + columns + 3 * width
    return FLOAT * (tokens * of_tokens + 2 * width * columns)


@pytest.mark.parametrize("width", [0, 64, 4096])
@pytest.mark.parametrize("budget", [16 * MIB, 64 * MIB, None])
@each_device
@each_shape
def test_a_plan_stays_within_the_budget(tokens, vocabulary, device, budget, width):
    made = plan(tokens, vocabulary, device=device, budget=budget, width=width)
    assert made.expected_bytes <= (budget or DEVICES[device].budget)


@pytest.mark.parametrize("budget", [2 * MIB, 16 * MIB, 64 * MIB])
@each_device
def test_a_plan_uses_the_budget_where_more_rows_are_faster(device, budget):
    made = plan(None, 50257, device=device, budget=budget, width=8)
    one_more = replace(made, chunk=made.chunk + 1).expected_bytes
    assert made.expected_bytes <= budget < one_more
    assert made.chunk < DEVICES[device].rows
    assert "budget" in made.why


@each_device
def test_more_rows_than_keep_a_product_busy_are_not_taken(device):
    made = plan(None, 100, device=device)
    assert made.chunk == DEVICES[device].rows
    assert device in made.why


def test_fewer_tokens_than_a_chunk_are_one_chunk():
    made = plan(100, 65536)
    assert (made.chunk, made.chunks, made.why) == (100, 1, "these are all tokens")


@pytest.mark.parametrize(
    ("tokens", "budget_rows", "chunk", "chunks"),
    [(7, 3, 3, 3), (7, 5, 4, 2), (10, 4, 4, 3), (12, 5, 4, 3), (9, 1, 1, 9)],
)
def test_chunks_of_small_numbers(tokens, budget_rows, chunk, chunks):
    made = plan(tokens, 11, budget=bytes_of(budget_rows, 11))
    assert (made.chunk, made.chunks) == (chunk, chunks)


def test_an_unknown_number_of_tokens_has_a_chunk_and_no_number_of_chunks():
    made = plan(None, 65536)
    assert (made.chunk, made.chunks) == (CPU.rows, None)


def test_no_tokens_are_no_chunks():
    made = plan(0, 65536)
    assert (made.chunk, made.chunks) == (1, 0)


def test_what_is_expected_is_the_logits_of_a_chunk_and_what_a_block_needs():
    made = plan(8192, 65536, width=256)
    assert made.chunk == 820
    assert made.expected_bytes == bytes_of(820, 65536, width=256)


def test_a_budget_too_small_for_one_token_takes_one_and_warns():
    needed = bytes_of(1, 100)
    told = f"memory_budget={needed - 1}, where {needed} bytes"
    with pytest.warns(UserWarning, match=told):
        made = plan(50, 100, budget=needed - 1)
    assert made.chunk == 1
    assert plan(50, 100, budget=needed).chunk == 1  # which does not warn


def test_under_a_small_budget_blocks_are_small_too():
    """They take a quarter of the budget, or are as small as is worth a product."""
    columns = [
        plan(8192, 65536, width=512, budget=size * MIB).columns
        for size in (64, 16, 8, 3)
    ]
    assert columns == [2048, 1024, 512, FEWEST_COLUMNS]


def test_a_kernel_is_updated_a_block_of_columns_at_a_time():
    assert plan(8192, 10**6).columns == CPU.columns
    assert plan(8192, 50).columns == 50


def test_an_accelerator_takes_all_columns_whatever_the_budget():
    """The logits and their gradient are as large then, and nothing of the kernel is."""
    made = plan(8192, 128256, device="accelerator", width=4096, budget=64 * MIB)
    assert made.columns == 128256
    assert made.expected_bytes == FLOAT * made.chunk * (2 * 128256 + 3 * 4096)


def test_a_printed_plan_says_what_it_does_and_why():
    assert str(plan(8192, 65536)) == (
        "10 chunks of 820 tokens x 65536 classes, 211 MiB at the peak: "
        "more would not be faster on this cpu"
    )
    assert str(plan(8192, 65536, budget=16 * MIB)) == (
        "133 chunks of 62 tokens x 65536 classes, 16 MiB at the peak: "
        "that is what a budget of 16 MiB holds"
    )
    assert str(plan(None, 65536)).startswith("as many chunks as needed of 896 tokens")
    assert str(plan(9, 65536)).startswith("1 chunk of 9 tokens x 65536 classes, ")


def test_equal_plans_are_equal_and_hash_alike():
    """They key compiled functions."""
    one, other = plan(8192, 65536), plan(8192, 65536)
    assert one == other
    assert hash(one) == hash(other)
    assert one != plan(8192, 65536, budget=MIB)
    with pytest.raises(AttributeError):
        one.chunk = 1
    assert isinstance(one, Plan)


ALONE = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("plan", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules["plan"] = module
spec.loader.exec_module(module)
print(module.plan(8192, 65536).chunk)
assert not {"keras", "numpy", "jax", "tensorflow", "torch"} & set(sys.modules)
"""


def test_a_plan_needs_no_framework():
    file = sys.modules[Plan.__module__].__file__
    command = [sys.executable, "-c", ALONE, file]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "820\n"
