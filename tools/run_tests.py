"""Run the tests, one pytest process for each set-up, two at a time.

    python tools/run_tests.py [pytest arguments]

A process imports one backend, and one Keras for `tf.keras`: neither can change later.
Each output is printed whole when its process ends, so that they do not mix.
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
AT_ONCE = 2
KERAS_3 = ("--ignore=tests/tf_keras", "--ignore=tests/site", "tests")
KERAS_2 = ("tests/tf_keras",)


class SetUp(NamedTuple):
    """One pytest process."""

    name: str
    backend: str
    arguments: tuple[str, ...]
    legacy: bool = False


class Outcome(NamedTuple):
    """What is left of it."""

    output: str
    status: int
    seconds: float


SET_UPS = (
    SetUp("tensorflow", "tensorflow", KERAS_3),
    SetUp("jax", "jax", KERAS_3),
    SetUp("torch", "torch", KERAS_3),
    SetUp("tf-keras", "tensorflow", KERAS_2),
    SetUp("tf-keras, TF_USE_LEGACY_KERAS=1", "tensorflow", KERAS_2, legacy=True),
)


def main() -> int:
    outcomes = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        running = {pool.submit(run, set_up): set_up for set_up in SET_UPS}
        for done in as_completed(running):
            name, outcome = running[done].name, done.result()
            outcomes[name] = outcome
            print(f"\n######## {name}\n\n{outcome.output}", flush=True)
    print("\n######## all set-ups\n")
    for set_up in SET_UPS:
        print(summary(set_up.name, outcomes[set_up.name]))
    return int(any(outcome.status for outcome in outcomes.values()))


def run(set_up: SetUp) -> Outcome:
    command = [sys.executable, "-m", "pytest", *set_up.arguments, *sys.argv[1:]]
    started = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(set_up),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    return Outcome(done.stdout, done.returncode, time.perf_counter() - started)


def environment(set_up: SetUp) -> dict[str, str]:
    # One thread each: with more, two processes on two cores wait for one another.
    own = {"KERAS_BACKEND": set_up.backend, "OMP_NUM_THREADS": "1"}
    if set_up.legacy:
        own["TF_USE_LEGACY_KERAS"] = "1"
    others = {k: v for k, v in os.environ.items() if k != "TF_USE_LEGACY_KERAS"}
    return {**others, **own}


def summary(name: str, outcome: Outcome) -> str:
    verdict = "passed" if outcome.status == 0 else f"FAILED ({outcome.status})"
    lines = outcome.output.strip().splitlines() or ["no output"]
    closing = lines[-1].strip("= ")
    return f"{name:32} {verdict:10} {outcome.seconds:5.0f} s   {closing}"


if __name__ == "__main__":
    sys.exit(main())
