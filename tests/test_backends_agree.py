"""Every backend equals every other, for all options drawn together.

Each solves the same problems in a process of its own.
"""

import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from strategies import BACKEND, Solution, assert_same, seeded

pytestmark = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="starts the other backends by itself"
)

HERE = Path(__file__).parent
BACKENDS = ("tensorflow", "jax", "torch")
COUNT = 40
SOLVE = """
import sys
from strategies import np, seeded

found = {}
for index, problem in enumerate(seeded(int(sys.argv[1]))):
    solution = problem.solve()
    found[f"value {index}"] = solution.value
    found[f"gradient {index}"] = solution.gradient
np.savez(sys.argv[2], **found)
"""
PROBLEMS = seeded(COUNT)


@pytest.fixture(scope="module")
def solutions(tmp_path_factory):
    """For each backend its solutions of all problems."""
    folder = tmp_path_factory.mktemp("solutions")
    files = {backend: folder / f"{backend}.npz" for backend in BACKENDS}
    running = {
        backend: subprocess.Popen(
            [sys.executable, "-c", SOLVE, str(COUNT), str(file)],
            cwd=HERE,
            env=environment(backend),
            stderr=subprocess.PIPE,
            text=True,
        )
        for backend, file in files.items()
    }
    for backend, process in running.items():
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, f"{backend}: {errors}"
    return {backend: read(file) for backend, file in files.items()}


def environment(backend):
    path = [str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "KERAS_BACKEND": backend,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
    }


def read(file):
    with np.load(file) as found:
        return [
            Solution(found[f"value {index}"], found[f"gradient {index}"])
            for index in range(COUNT)
        ]


@pytest.mark.parametrize("index", range(COUNT))
def test_every_backend_equals_every_other(solutions, index):
    problem = PROBLEMS[index]
    for one, other in combinations(BACKENDS, 2):
        found, expected = solutions[one][index], solutions[other][index]
        # Each may be that far from what is right.
        bound = problem.allowance(expected).map(lambda apart: 2 * apart)
        assert_same(found, expected, bound)


def test_the_problems_take_every_option_of_either_loss():
    """What is drawn at random might leave one out."""
    kinds = {(p.activation, p.reduction, p.are_ids) for p in PROBLEMS}
    for activation in ("softmax", "sigmoid"):
        mine = [p for p in PROBLEMS if p.activation == activation]
        names = {name for p in mine for name, value in p.options.items() if value}
        expected = {"label_smoothing", "focal_gamma", "class_weight", "ignore_index"}
        expected |= {"z_loss"} if activation == "softmax" else {"pos_weight"}
        assert names == expected
        assert len({p.reduction for p in mine}) == 5
    assert {are_ids for _, _, are_ids in kinds} == {False, True}
