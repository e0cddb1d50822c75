"""Memory budgets by the number of tokens that they hold, and plans of other devices."""

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
    """A CPU takes so many classes at a time, as if kernels were larger."""
    cpu = replace(plan.DEVICES["cpu"], columns=columns)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(plan.DEVICES, "cpu", cpu)
        yield


@contextmanager
def planned_for(device):
    """As if the frameworks had such a device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels._body, "device", lambda: device)
        yield
