"""Run the tests of all set-ups, two processes at a time.

    python tools/run_tests.py [--quick SET-UP] [pytest arguments]

A process imports one backend, and one Keras for `tf.keras`: neither can change later.
Two processes share the tests of a set-up (`tests/sharing.py`), and the first that has
nothing left to do starts on the next one. Each output is printed whole when its process
ends, so that they do not mix. Last come the slowest tests, and a line for each set-up.

`--quick` runs the tests of one set-up, less the files that take longest: what one runs
after each change.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
AT_ONCE = 2
SLOWEST = 10
KERAS_3 = ("--ignore=tests/tf_keras", "--ignore=tests/site", "tests")
# What shows the same on each backend is shown on torch, where it costs least.
OF_ITS_OWN = ("-m", "not any_backend")
KERAS_2 = "tests/tf_keras"
# What depends on which Keras `tf.keras` is: the models around our classes, and files.
LEGACY = tuple(
    f"{KERAS_2}/test_tf_keras_{name}.py"
    for name in ("legacy", "mixing", "saving", "training")
)

# What takes longest where it is compiled: models that are trained in each mode, texts.
LONG = (
    "backends_agree",
    "catalogue",
    "documents",
    "fused_fit",
    "fused_memory",
    "migration",
    "replicas_tensorflow",
    "reports",
    "second_derivatives",
)


class SetUp(NamedTuple):
    """What the tests of a process have in common."""

    name: str
    backend: str
    arguments: tuple[str, ...]
    legacy: bool = False


class Outcome(NamedTuple):
    """What is left of a process."""

    output: str
    status: int
    began: float
    ended: float
    record: dict[str, Any]


SET_UPS = (
    SetUp("tensorflow", "tensorflow", (*KERAS_3, *OF_ITS_OWN)),
    SetUp("jax", "jax", (*KERAS_3, *OF_ITS_OWN)),
    SetUp("torch", "torch", KERAS_3),
    SetUp("tf-keras", "tensorflow", (KERAS_2,)),
    SetUp("tf-keras, TF_USE_LEGACY_KERAS=1", "tensorflow", LEGACY, legacy=True),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--quick", choices=[set_up.name for set_up in SET_UPS])
    given, of_pytest = parser.parse_known_args()
    set_ups = [quick(given.quick)] if given.quick else SET_UPS
    with tempfile.TemporaryDirectory() as folder:
        outcomes = run_all(set_ups, Path(folder), of_pytest)
    print("\n######## the slowest tests\n")
    for seconds, test in slowest(outcomes):
        print(f"{seconds:6.1f} s   {test}")
    print("\n######## all set-ups\n")
    for set_up in set_ups:
        print(summary(set_up.name, outcomes[set_up.name]))
    everything = [each for parts in outcomes.values() for each in parts]
    return int(any(each.status for each in everything))


def quick(name: str) -> SetUp:
    (set_up,) = (set_up for set_up in SET_UPS if set_up.name == name)
    if name == "torch":  # which compiles nothing
        return set_up
    ignored = [f"--ignore=tests/test_{long}.py" for long in LONG]
    return set_up._replace(arguments=(*ignored, *set_up.arguments))


def run_all(
    set_ups: Iterable[SetUp], folder: Path, of_pytest: list[str]
) -> dict[str, list[Outcome]]:
    """The processes of each set-up, in the order in which they ended."""
    outcomes: dict[str, list[Outcome]] = {set_up.name: [] for set_up in set_ups}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        running = {
            pool.submit(run, set_up, part, folder, of_pytest): (set_up.name, part)
            for set_up in set_ups
            for part in range(AT_ONCE)
        }
        for done in as_completed(running):
            (name, part), outcome = running[done], done.result()
            outcomes[name].append(outcome)
            title = f"{name} ({part + 1} of {AT_ONCE})"
            print(f"\n######## {title}\n\n{outcome.output}", flush=True)
    return outcomes


def run(set_up: SetUp, part: int, folder: Path, of_pytest: list[str]) -> Outcome:
    claims = folder / set_up.name
    claims.mkdir(exist_ok=True)
    own = folder / f"{set_up.name} {part}"
    own.mkdir()
    record = own / "record.json"
    command = [sys.executable, "-m", "pytest", "-p", "sharing", *set_up.arguments]
    command += [f"--claims={claims}", f"--record={record}"]
    command += ["--backwards"] * (part % 2)
    began = time.perf_counter()
    done = subprocess.run(
        [*command, *of_pytest],
        cwd=ROOT,
        env=environment(set_up, own),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    ended = time.perf_counter()
    found = json.loads(record.read_text()) if record.exists() else {}
    return Outcome(done.stdout, done.returncode, began, ended, found)


def environment(set_up: SetUp, own: Path) -> dict[str, str]:
    changed = {
        "KERAS_BACKEND": set_up.backend,
        # With more threads, two processes on two cores wait for one another.
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(
            [str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
        # What a process and its children compile, they compile once. Not what another
        # process compiles: JAX reads files that are half written.
        "JAX_COMPILATION_CACHE_DIR": str(own),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    if set_up.legacy:
        changed["TF_USE_LEGACY_KERAS"] = "1"
    others = {k: v for k, v in os.environ.items() if k != "TF_USE_LEGACY_KERAS"}
    return {**others, **changed}


def slowest(outcomes: dict[str, list[Outcome]]) -> list[tuple[float, str]]:
    tests = [
        (seconds, f"{test} ({name})")
        for name, parts in outcomes.items()
        for part in parts
        for test, seconds in part.record.get("seconds", {}).items()
    ]
    return sorted(tests, reverse=True)[:SLOWEST]


def summary(name: str, parts: list[Outcome]) -> str:
    statuses = sorted({part.status for part in parts} - {0})
    verdict = f"FAILED ({', '.join(map(str, statuses))})" if statuses else "passed"
    took = max(part.ended for part in parts) - min(part.began for part in parts)
    cpu = sum(part.record.get("cpu", 0.0) for part in parts)
    counts: Counter[str] = sum(
        (Counter(part.record.get("counts", {})) for part in parts), Counter()
    )
    kinds = sorted(counts, key=lambda kind: (kind != "failed", -counts[kind]))
    told = ", ".join(f"{counts[kind]} {kind}" for kind in kinds) or "no tests"
    return f"{name:32} {verdict:10} {took:5.0f} s  CPU {cpu:5.0f} s   {told}"


if __name__ == "__main__":
    sys.exit(main())
