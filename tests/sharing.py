"""A pytest plugin: several processes share the tests of one set-up.

`tools/run_tests.py` loads it. Each process collects all tests, and claims those of a
function before it runs them, by creating a file that may exist once. One goes from the
first test to the last, another from the last to the first: where they meet, both are
done, however long each test takes. Neighbours stay together, because they share what
a process has compiled.
"""

import json
import resource
from collections import defaultdict
from pathlib import Path
from urllib.parse import quote

import pytest


def pytest_addoption(parser):
    group = parser.getgroup("sharing")
    group.addoption("--claims", type=Path, help="folder of the claims of all processes")
    group.addoption("--backwards", action="store_true", help="claim the last one first")
    group.addoption("--record", type=Path, help="file for counts, durations and CPU")


def pytest_configure(config):
    if config.option.record:
        config.pluginmanager.register(Record(config.option.record))


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session):
    options = session.config.option
    if not options.claims or options.collectonly or session.testsfailed:
        return None  # pytest's own loop
    groups = by_function(session.items)
    if options.backwards:
        groups.reverse()
    run(session, (item for group in groups if claim(group, options) for item in group))
    return True


def by_function(items):
    groups = defaultdict(list)
    for item in items:
        groups[item.nodeid.partition("[")[0]].append(item)
    return list(groups.values())


def claim(group, options):
    name = quote(group[0].nodeid.partition("[")[0], safe="")
    try:
        (options.claims / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def run(session, items):
    """As pytest does it, which has to know the next test to keep its fixtures."""
    item = next(items, None)
    while item is not None:
        following = next(items, None)
        session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)
        item = following


class Record:
    """How many tests ended how, how long each took, and the CPU time of the process."""

    def __init__(self, file):
        self.file = file
        self.seconds = defaultdict(float)

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] += report.duration

    def pytest_terminal_summary(self, terminalreporter):
        stats = terminalreporter.stats
        counts = {kind: len(found) for kind, found in stats.items() if kind}
        record = {"counts": counts, "seconds": self.seconds, "cpu": cpu_seconds()}
        self.file.write_text(json.dumps(record))


def cpu_seconds():
    """Of this process, and of those that it started and saw end."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    used = [resource.getrusage(each) for each in who]
    return sum(each.ru_utime + each.ru_stime for each in used)
