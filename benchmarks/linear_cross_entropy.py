"""The fused loss, from features to gradients, against forms that hold all logits.

    python benchmarks/linear_cross_entropy.py [--quick] [--cases fit sizes ...]

Times are medians of contenders that take turns, as ratios within a framework. Where
memory is compared, each contender has a process of its own: memory is what XLA says
that it keeps for temporaries, and how far the peak of the resident set in a second run
lies above what was resident before the first. The cases:

    function  one loss with its gradients: vocabularies of 32768, 65536 and 131072
    accelerator  the same in bfloat16, at shapes of large models, where JAX has one
    tokens    memory under a growing number of tokens
    fit       whole steps of `fit`, with a vocabulary of 65536
    evaluate  the same model's steps of `evaluate`
    reports   steps of `fit` with all reports, against none
    budgets   time under budgets of 1/4 to 1/32 of what tf.nn or optax keep
    chunks    chunks of 64 to 2048 tokens against the planned one
    valid     60 % of the tokens against all of them
    options   each option of the loss alone against none
    sizes     fused against plain over sizes of the vocabulary: where "auto" begins

On JAX tokamax takes part if it is installed, as `make bench` does, in the form that it
has for CPUs and GPUs: all logits are held, and computed again for the gradients.

The cases take about 105 minutes on two quiet cores and 16 GB of memory, all together;
`--quick` runs them at small sizes in 2 or 3, and its figures mean nothing. Exit status
1 if a contender did not run.

Writes `benchmarks/results/linear_cross_entropy.md` and `.json`, where cases that are
not run again stay as they are; `--quick` writes into `benchmarks/scratch/` instead.
"""

import argparse
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import linear_report
from linear_contenders import (
    FORWARD,
    FUSED,
    KERAS,
    OPTIONS,
    PEERS,
    PLAIN,
    PRODUCTS,
    TOKAMAX,
    TORCH_CHUNKED,
    Problem,
    prepare,
)
from side_by_side import (
    BACKENDS,
    RESULTS,
    Measured,
    compared,
    host,
    machine,
    versions,
    write,
)

SCRATCH = Path(__file__).parent / "scratch"
XLA = ("tensorflow", "jax")
Seat = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """Contenders on one backend, and which of them each is compared to.

    Seats that measure memory hold one contender each; the others share a process.
    """

    backend: str
    title: str
    seats: list[Seat]
    reference: str | Callable[[str], str]
    rounds: int
    memory: bool = True
    pairs: bool = field(default=False)  # each has a reference of its own

    def reference_of(self, name: str) -> str:
        return (
            self.reference if isinstance(self.reference, str) else self.reference(name)
        )

    def measured(self) -> dict[str, Any]:
        found, failures = compared(__file__, self.backend, self.seats, self.rounds)
        return {
            "backend": self.backend,
            "title": self.title,
            "memory": self.memory,
            "pairs": self.pairs,
            "rounds": self.rounds,
            "rows": [self._row(name, found) for name in found],
            "failures": failures,
        }

    def _row(self, name: str, found: dict[str, Measured]) -> dict[str, Any]:
        row = {"name": name, **found[name]._asdict()}
        reference = self.reference_of(name)
        if reference in found:
            row["reference"] = reference
            for key, value in found[reference]._asdict().items():
                row[f"{key}_ratio"] = row[key] / value if row[key] and value else None
        return row


def given(name: str, problem: Problem, form: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "problem": astuple(problem), "form": form, **more}


def alone(contenders: list[dict[str, Any]]) -> list[Seat]:
    return [{"kind": "function", "contenders": [c]} for c in contenders]


def together(contenders: list[dict[str, Any]]) -> list[Seat]:
    return [{"kind": "function", "contenders": contenders}]


def function(backend: str, quick: bool) -> Iterator[Comparison]:
    """All forms at the least vocabulary; those that decide, at the larger ones."""
    peer = PEERS[backend]
    peers = [peer, TOKAMAX] if backend == "jax" and find_spec("tokamax") else [peer]
    every = [PLAIN, KERAS, *peers, PRODUCTS, FUSED, FORWARD]
    sizes: list[tuple[Problem, list[str], int]] = [
        (Problem(8192, 512, 32768), every, 2),
        (Problem(8192, 512, 65536), [PLAIN, *peers, PRODUCTS, FUSED], 3),
        # So long a run is its own average.
        (Problem(8192, 512, 131072), [PLAIN, FUSED], 1),
    ]
    if backend == "torch":
        sizes = [(Problem(1024, 512, 32768), [*every, TORCH_CHUNKED], 3)]
    if quick:
        sizes = [(Problem(512, 64, 8192), sizes[0][1], 2)]
    for problem, forms, rounds in sizes:
        contenders = [given(form, problem, form) for form in forms]
        seats = together(contenders) if quick else alone(contenders)
        yield Comparison(backend, str(problem), seats, PLAIN, rounds, memory=not quick)


def accelerator(backend: str, quick: bool) -> Iterator[Comparison]:
    """The shapes of large language models, if JAX has an accelerator.

    Kernels in float32 are those of a model under the policy "mixed_bfloat16".
    """
    found = accelerator_of_jax() if backend == "jax" else ""
    if not found:
        return
    sizes = [(512, 64, 8192)] if quick else [(4096, 4096, 128256), (8192, 2304, 256000)]
    theirs = [TOKAMAX] if find_spec("tokamax") else []
    forms = [KERAS, PEERS[backend], *theirs, PLAIN, PRODUCTS, FUSED, FORWARD]
    for size, kernel in itertools.product(sizes, ("bfloat16", "float32")):
        problem = Problem(*size, dtype="bfloat16", kernel_dtype=kernel)
        contenders = [given(form, problem, form) for form in forms]
        seats, rounds = together(contenders), 2 if quick else 15
        title = f"{problem}, {found}"
        yield Comparison(backend, title, seats, KERAS, rounds, memory=False)


def accelerator_of_jax() -> str:
    """Its name, or "". Asked in a process of its own: one that has it keeps memory."""
    ask = "import jax; d = jax.devices()[0]; print(d.platform, d.device_kind)"
    command = [sys.executable, "-c", ask]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    platform, _, kind = done.stdout.strip().partition(" ")
    return "" if platform == "cpu" else kind


def tokens(backend: str, quick: bool) -> Iterator[Comparison]:
    if backend not in XLA:
        return
    # Whole chunks of 896: other numbers are parted into chunks of less.
    width, classes, counts = 128, 32768, [1792, 3584, 8064, 16128, 32256]
    if quick:
        width, classes, counts = 32, 8192, [512, 1024]
    problems = {f"{count} tokens": Problem(count, width, classes) for count in counts}
    contenders = [given(name, problem, FUSED) for name, problem in problems.items()]
    title = f"tokens x {width} x {classes}"
    yield Comparison(backend, title, alone(contenders), next(iter(problems)), 1)


def fit(backend: str, quick: bool) -> Iterator[Comparison]:
    return whole_steps("fit", backend, quick)


def evaluate(backend: str, quick: bool) -> Iterator[Comparison]:
    return whole_steps("evaluate", backend, quick)


OURS: Seat = {"form": FUSED, "jit": True, "fused": "auto"}
NO_REPORTS: Seat = {**OURS, "name": "keras_logits, fused, jit"}
ALL_REPORTS: Seat = {
    **OURS,
    "name": "keras_logits, fused, jit, all reports",
    "reports": True,
}


def whole_steps(run: str, backend: str, quick: bool) -> Iterator[Comparison]:
    if backend not in XLA:
        return
    sizes = sizes_of_steps(quick)
    seats: list[Seat] = [
        {"name": "Keras, jit", "form": KERAS, "jit": True},
        {"name": "keras_logits, plain, jit", **OURS, "fused": False},
        NO_REPORTS,
        ALL_REPORTS,
    ]
    if backend == "tensorflow":
        seats += [
            {"name": "Keras, graph", "form": KERAS, "jit": False},
            {"name": "keras_logits, fused, graph", **OURS, "jit": False},
        ]
    yield Comparison(
        backend, shape_of(sizes), steps_of(run, sizes, seats), "Keras, jit", 5
    )


def reports(backend: str, quick: bool) -> Iterator[Comparison]:
    """What is compared are a few percent: measured as that of `options` is."""
    if backend not in XLA:
        return
    sizes = sizes_of_steps(quick)
    seats = steps_of("fit", sizes, [NO_REPORTS, ALL_REPORTS])
    yield Comparison(
        backend,
        shape_of(sizes),
        2 * (seats + seats[::-1]),
        NO_REPORTS["name"],
        2 if quick else 10,
        memory=False,
    )


Sizes = tuple[int, int, int, int]


def sizes_of_steps(quick: bool) -> Sizes:
    return (4, 64, 32, 8192) if quick else (8, 512, 256, 65536)


def shape_of(sizes: Sizes) -> str:
    sequences, length, width, classes = sizes
    return f"{sequences} x {length} tokens, width {width}, vocabulary {classes}"


def steps_of(run: str, sizes: Sizes, seats: list[Seat]) -> list[Seat]:
    return [{"kind": "fit", "run": run, "sizes": sizes, **seat} for seat in seats]


def budgets(backend: str, quick: bool) -> Iterator[Comparison]:
    """At a shape where the budgets, and not the speed, decide on the chunk."""
    if backend not in XLA:
        return
    problem = Problem(512, 64, 8192) if quick else Problem(2048, 512, 32768)
    peer = PEERS[backend]
    contenders = [given(form, problem, form) for form in (PLAIN, peer, FUSED)]
    for part in (4,) if quick else (4, 8, 16, 32):
        share = {"share_of": (peer, 1 / part)}
        contenders.append(given(f"budget 1/{part}", problem, FUSED, **share))
    yield Comparison(backend, str(problem), alone(contenders), peer, 5)


def chunks(backend: str, quick: bool) -> Iterator[Comparison]:
    if backend != "jax":
        return
    sizes = [
        (2048, 256, 32768),
        (4096, 256, 16384),
        (2048, 512, 16384),
        (2500, 128, 50257),
        (3001, 256, 20011),
        (4099, 64, 32003),
    ]
    if quick:
        sizes = [(512, 32, 8192), (601, 32, 9001)]
    for size in sizes:
        problem = Problem(*size)
        contenders = [given("planned", problem, FUSED)]
        contenders += [
            given(f"{chunk}", problem, FUSED, chunk=chunk)
            for chunk in (64, 128, 256, 512, 1024, 2048)
        ]
        yield Comparison(
            backend, str(problem), together(contenders), "planned", 3, memory=False
        )


def valid(backend: str, quick: bool) -> Iterator[Comparison]:
    if backend not in XLA:
        return
    tokens, width, classes = (1024, 64, 8192) if quick else (4096, 512, 32768)
    contenders = [
        given(name, Problem(tokens, width, classes, share), FUSED)
        for name, share in (("all tokens", 1.0), ("60 % of the tokens", 0.6))
    ]
    title = str(Problem(tokens, width, classes))
    yield Comparison(
        backend, title, together(contenders), "all tokens", 9, memory=False
    )


def options(backend: str, quick: bool) -> Iterator[Comparison]:
    """What is compared are a few percent: of short runs, so that there can be many.

    In two processes, made in either order: with the memory that it happens to get, one
    and the same program takes a few percent more or less.
    """
    if backend not in XLA:
        return
    # One whole chunk, as wide as those of `function`.
    problem = Problem(512, 64, 8192) if quick else Problem(896, 512, 8192)
    contenders = [given("no option", problem, FUSED)]
    contenders += [given(name, problem, FUSED, option=name) for name in OPTIONS]
    seats = together(contenders) + together(contenders[::-1])
    rounds = 2 if quick else 60
    yield Comparison(backend, str(problem), seats, "no option", rounds, memory=False)


def sizes(backend: str, quick: bool) -> Iterator[Comparison]:
    if backend not in XLA:
        return
    tokens, width = (512, 64) if quick else (2048, 256)
    vocabularies = [2**k for k in range(8, 12 if quick else 17)]
    contenders = [
        given(f"{classes} classes, {word}", Problem(tokens, width, classes), form)
        for classes in vocabularies
        for word, form in (("plain", PLAIN), ("fused", FUSED))
    ]
    yield Comparison(
        backend,
        f"{tokens} x {width} x classes",
        together(contenders),
        lambda name: name.replace("fused", "plain"),
        3 if quick else 5,
        memory=False,
        pairs=True,
    )


CASES = {
    case.__name__: case
    for case in (
        function,
        accelerator,
        tokens,
        fit,
        evaluate,
        reports,
        budgets,
        chunks,
        valid,
        options,
        sizes,
    )
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--backends", nargs="+", default=BACKENDS, choices=BACKENDS)
    parser.add_argument("--host", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.host:
        host(chosen.backends[0], prepare)
        return 0
    folder = SCRATCH if chosen.quick else RESULTS
    path = folder / "linear_cross_entropy.json"
    data = json.loads(path.read_text()) if path.exists() else {}
    failures: list[str] = []
    for case in chosen.cases:
        found = run(case, chosen.backends, chosen.quick)
        if not found["comparisons"]:
            print(f"{case}: nothing to run here")
            continue
        data[case] = found
        failures += [f for one in found["comparisons"] for f in one["failures"]]
        data = {name: data[name] for name in CASES if name in data}
        write(path.stem, data, linear_report.as_markdown(data), folder)
    print(f"\n{linear_report.as_markdown(data)}")
    if chosen.quick:
        print("These sizes are small: the figures mean nothing.")
    return 1 if failures else 0


def run(case: str, backends: list[str], quick: bool) -> dict[str, Any]:
    comparisons = itertools.chain.from_iterable(
        CASES[case](backend, quick) for backend in backends
    )
    done = []
    for comparison in comparisons:
        print(f"{case}, {comparison.backend}, {comparison.title}", end=" ", flush=True)
        start = time.perf_counter()
        done.append(comparison.measured())
        print(f"{time.perf_counter() - start:.0f} s", flush=True)
    return {"machine": machine(), "versions": versions(), "comparisons": done}


if __name__ == "__main__":
    sys.exit(main())
