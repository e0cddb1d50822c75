"""Memory budgets by the number of tokens that they hold."""

from keras_logits import kernels
from keras_logits.kernels import plan
from keras_logits.maths.softmax import SoftmaxFormula


def budget_for(tokens, classes, width, **options):
    """The least `memory_budget` under which so many tokens are taken at a time."""
    formula = SoftmaxFormula(options.pop("ids", True), classes, **options)
    buffers = kernels.buffers_of(formula)
    columns = min(plan.COLUMNS["cpu"], classes)
    made = plan.Plan(None, classes, tokens, columns, "", width, buffers)
    return made.expected_bytes
