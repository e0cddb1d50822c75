"""What the benchmarks share: contenders that take turns, processes, tables, files.

All contenders of a comparison take turns, so that whatever else the machine does hits
them alike, and the time of each is the median over the rounds. Where memory is measured
each has a process of its own, a `Host`, and the hosts take turns.
"""

import ctypes
import gc
import importlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

BACKENDS = ("tensorflow", "jax", "torch")
RESULTS = Path(__file__).parent / "results"
REPEAT_UNTIL = 0.03  # seconds; what is faster is run again, and its mean is taken
MIB = 2**20

Contender = Callable[[], Any]


def taking_turns(contenders: dict[str, Contender], rounds: int) -> dict[str, float]:
    """The median time of each, in seconds, after two runs to warm up."""
    for contender in contenders.values():
        contender()
        contender()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in in_some_order(contenders):
            start = time.perf_counter()
            contender()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def in_some_order(contenders: dict[str, Any]) -> list[tuple[str, Any]]:
    """So that nobody is always first, or always after the same one."""
    return random.sample(list(contenders.items()), len(contenders))


def in_own_process(script: str, backend: str, *arguments: str) -> Any:
    """What `script --worker --backends backend ...` prints last, as JSON."""
    command = [sys.executable, script, "--worker", "--backends", backend, *arguments]
    done = subprocess.run(
        command,
        env=environment(backend),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def environment(backend: str) -> dict[str, str]:
    return {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}


class Entry(NamedTuple):
    """A contender, and what XLA says of its temporaries once it has run."""

    run: Contender
    temporaries: Callable[[], int | None] = lambda: None


class Measured(NamedTuple):
    """Of one contender: bytes of memory, and the median time in seconds.

    `growth` is how far the peak of the resident set in a second run, results included,
    lies above what was resident when the first contender of its process was ready;
    `rise`, above what was resident just before that run.
    """

    temporaries: int | None
    growth: int
    rise: int
    seconds: float = 0.0


class Host:
    """A process that runs its contenders when it is told to."""

    def __init__(self, script: str, backend: str) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, script, "--host", "--backends", backend],
            env=environment(backend),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def prepare(self, given: Any) -> tuple[dict[str, Measured], list[str]]:
        """What was measured in first runs, and what went wrong in others."""
        answer = self._answer_to(given)
        found = {name: Measured(*m) for name, m in answer["found"].items()}
        return found, answer["failures"]

    def run(self) -> dict[str, float]:
        times: dict[str, float] = self._answer_to("run")
        return times

    def close(self) -> None:
        self._process.communicate()
        self._errors.close()

    def _answer_to(self, message: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended: its last words are read below
        answer = self._process.stdout.readline()
        if not answer:
            code = self._process.wait()
            self._errors.seek(0)
            last = "\n".join(self._errors.read().splitlines()[-12:])
            raise RuntimeError(f"exit status {code} after {message}\n{last}")
        return json.loads(answer)


def host(
    backend: str, prepare: Callable[[Any], dict[str, Callable[[], Entry]]]
) -> None:
    """The life of a host: the first message says what to run, the others when."""
    answers, sys.stdout = sys.stdout, sys.stderr
    importlib.import_module(backend)
    importlib.import_module("keras_logits")
    entries: dict[str, Entry] = {}
    for line in sys.stdin:
        message = json.loads(line)
        if message == "run":
            answer: Any = {name: timed(e.run) for name, e in in_some_order(entries)}
        else:
            answer = first_runs(prepare(message), entries)
        print(json.dumps(answer), file=answers, flush=True)


def first_runs(
    makers: dict[str, Callable[[], Entry]], entries: dict[str, Entry]
) -> dict[str, Any]:
    """Makes the entries, and runs each twice: the second does not compile."""
    found, failures, before = {}, [], None
    for name, make in makers.items():
        try:
            entry = make()
            give_back_what_is_free()
            before = memory("VmRSS") if before is None else before
            entry.run()
            give_back_what_is_free()
            forget_peak()
            compiled = memory("VmRSS")
            entry.run()
            peak = memory("VmHWM")
            found[name] = Measured(entry.temporaries(), peak - before, peak - compiled)
            entries[name] = entry
        except Exception as error:
            failures.append(f"{name}: {type(error).__name__}: {error}")
    return {"found": found, "failures": failures}


def timed(run: Contender) -> float:
    start, runs, elapsed = time.perf_counter(), 0, 0.0
    while elapsed < REPEAT_UNTIL:
        run()
        runs += 1
        elapsed = time.perf_counter() - start
    return elapsed / runs


def give_back_what_is_free() -> None:
    """Returns to Linux what compiling had, which Python and C keep for later."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def forget_peak() -> None:
    """From here on the peak of the resident set is counted anew."""
    Path("/proc/self/clear_refs").write_text("5")


def memory(field: str) -> int:
    """A size in bytes out of what Linux says of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def compared(
    script: str,
    backend: str,
    seats: Iterable[Any],
    rounds: int,
) -> tuple[dict[str, Measured], list[str]]:
    """All contenders of all seats, a process for each seat, taking turns.

    A host is told its seat, and what was measured before it. Left out is who fails, and
    a seat whose process ends early, for want of memory say; what was said comes second.
    """
    hosts = [(seat, Host(script, backend)) for seat in seats]
    found: dict[str, Measured] = {}
    times: dict[str, list[float]] = {}
    alive, failures = [], []
    for seat, process in hosts:
        try:
            measured, failed = process.prepare([seat, found])
            found.update(measured)
            alive.append(process)
        except RuntimeError as error:
            failed = [str(error)]
        failures += failed
        for told in failed:
            print(f"FAILED: {told}", flush=True)
    for _ in range(rounds):
        for process in alive:
            for name, seconds in process.run().items():
                times.setdefault(name, []).append(seconds)
    for _, process in hosts:
        process.close()
    found = {
        name: measured._replace(seconds=statistics.median(times[name]))
        for name, measured in found.items()
    }
    return found, failures


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("keras", "tensorflow", "jax", "optax", "tokamax", "torch", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def shown_versions(found: dict[str, str]) -> str:
    return "Versions: " + ", ".join(f"{k} {v}" for k, v in found.items()) + "."


def machine() -> str:
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return f"{platform.system()}, {len(models)} cores of {models[0] if models else '?'}"


def table(titles: list[str], rows: Iterable[list[str]]) -> list[str]:
    """A table in Markdown: the first column has words, the others numbers."""
    lines = [f"| | {' | '.join(titles)} |", "|---|" + "---:|" * len(titles)]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def write(name: str, data: Any, text: str, folder: Path = RESULTS) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")
    (folder / f"{name}.md").write_text(text)
