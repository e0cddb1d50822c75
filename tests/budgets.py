"""Memory budgets by the number of tokens that they hold, and plans of small blocks."""

from contextlib import contextmanager
from dataclasses import replace

import pytest

from keras_logits import kernels
from keras_logits.kernels import plan
from keras_logits.maths.softmax import SoftmaxFormula


def budget_for(tokens, classes, width, **options):
    """The least `memory_budget` under which so many tokens are taken at a time."""
    formula = SoftmaxFormula(options.pop("ids", True), classes, **options)
    buffers = kernels.buffers_of(formula)
    columns = min(plan.DEVICES["cpu"].columns, classes)
    made = plan.Plan(None, classes, tokens, columns, "", width, buffers)
    return made.expected_bytes


@contextmanager
def columns_at_a_time(columns):
    """Classes are taken so many at a time, as if larger kernels were used."""
    with pytest.MonkeyPatch.context() as patch:
        for name, device in plan.DEVICES.items():
            patch.setitem(plan.DEVICES, name, replace(device, columns=columns))
        yield
