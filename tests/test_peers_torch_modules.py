"""torch's own inputs for its cross-entropies (`module_db`), through our losses.

Truth is the module itself, values and gradients in float64, and torch's reference
function where its inputs are taken as they are.

How an option of torch is written here:

- `weight` of class ids or distributions is `class_weight`. torch draws negative ones,
  which we refuse: their absolute values are taken, by both sides.
- `weight` of units is any tensor that broadcasts: `sample_weight`, over units that
  stand as positions of one unit each.
- `reduction="mean"` divides by the labels' weights over class ids
  ("mean_with_sample_weight"), else by the number of losses ("sum_over_batch_size").
- `NLLLoss` takes logarithms: their exponentials are probabilities, `from_logits=False`.
- A mean over no label is NaN in torch, and 0 here.

What has no counterpart:

- `LinearCrossEntropyLoss` with `out_features`: several softmaxes from one kernel. With
  `options`, how torch divides the work: the same inputs, asked again.
- Smoothed distributions that do not sum to 1: torch smooths as if they did. They are
  divided by their sum, by both sides.
- Errors about dtypes. Class ids may be of any integer dtype here, and floats if these
  are whole; one-hot labels may be integers; weights have no dtype (all of `NLLLoss`).
- `ignore_index` with distributions is an error in torch; here it names a class, and
  ignores what is wholly of that class.
- Half precision: `module_db` itself compares in that of the reference.
"""

import keras
import numpy as np
import pytest

from keras_logits import (
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
    linear_softmax_cross_entropy,
)

if keras.config.backend() != "torch":
    pytest.skip("torch.nn takes torch's tensors", allow_module_level=True)

import torch

common = pytest.importorskip("torch.testing._internal.common_modules")

BY_NAME = {info.module_cls.__name__: info for info in common.module_db}
NAMES = ("CrossEntropyLoss", "NLLLoss", "BCELoss", "BCEWithLogitsLoss")
LINEAR = "LinearCrossEntropyLoss"
REDUCTIONS = {"none": None, "sum": "sum"}
EPS = np.finfo("float64").eps


def drawn(name, function="module_inputs_func"):
    info = BY_NAME.get(name)
    if info is None or getattr(info, function) is None:
        return []  # an older torch
    torch.manual_seed(0)
    return getattr(info, function)(info, "cpu", torch.float64, True, True)


def solved(values, tensors):
    """The values and their gradients, by an upstream that tells positions apart."""
    upstream = torch.linspace(0.5, 2.0, values.numel(), dtype=values.dtype)
    total = (values * upstream.reshape(values.shape)).sum()
    found = torch.autograd.grad(total, tensors)
    return [x.detach().numpy() for x in (values, *found)]


def reduction_of(options, by_weights):
    mean = "mean_with_sample_weight" if by_weights else "sum_over_batch_size"
    return REDUCTIONS.get(options.get("reduction", "mean"), mean)


def softmax(options, scores, labels, from_logits):
    ids = not labels.is_floating_point()
    weight = options.get("weight")
    loss = SoftmaxCrossEntropy(
        from_logits,
        axis=1 if scores.ndim > 1 else 0,
        class_weight=None if weight is None else weight.tolist(),
        label_smoothing=options.get("label_smoothing", 0.0),
        ignore_index=options.get("ignore_index"),
        reduction=reduction_of(options, by_weights=ids),
    )
    return loss(labels, scores)


def sigmoid(options, scores, labels, from_logits):
    weight = options.get("weight")
    if weight is not None:
        weight = weight.expand(scores.shape)
    loss = SigmoidCrossEntropy(
        from_logits, reduction=reduction_of(options, by_weights=False)
    )
    found = loss(labels[..., None], scores[..., None], weight)
    return found.reshape(scores.shape) if found.ndim else found


OURS = {
    "CrossEntropyLoss": lambda *given: softmax(*given, from_logits=True),
    "NLLLoss": lambda options, scores, labels: softmax(
        options, scores.exp(), labels, from_logits=False
    ),
    "BCELoss": lambda *given: sigmoid(*given, from_logits=False),
    "BCEWithLogitsLoss": lambda *given: sigmoid(*given, from_logits=True),
}
INPUTS = [(name, given) for name in NAMES for given in drawn(name)]


def named(inputs):
    return [f"{name}-{given.desc}" for name, given in inputs]


def assert_same(found, expected):
    largest = [max(1.0, np.abs(x).max(initial=0.0)) for x in expected]
    for x, y, size in zip(found, expected, largest, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=64 * EPS * size)


# torch draws its logits of units between 0 and 1, of which we warn.
@pytest.mark.filterwarnings("ignore:.*looks like probabilities")
@pytest.mark.parametrize(("name", "given"), INPUTS, ids=named(INPUTS))
def test_values_and_gradients_are_those_of_the_module(name, given):
    options = dict(given.constructor_input.kwargs)
    as_drawn = True
    if "weight" in options and name in ("CrossEntropyLoss", "NLLLoss"):
        as_drawn = bool((options["weight"] >= 0).all())
        options["weight"] = options["weight"].abs()
    scores, labels = given.forward_input.args[0], given.forward_input.args[1].detach()
    module = BY_NAME[name].module_cls(**options)
    expected = module(scores, labels)
    ours = OURS[name](options, scores, labels)
    if torch.isnan(expected).all():
        assert ours == 0
        return
    assert ours.dtype == torch.float64
    assert_same(solved(ours, [scores]), solved(expected, [scores]))
    if as_drawn and given.reference_fn is not None:
        reference = given.reference_fn(module, scores.detach(), labels)
        assert_same([ours.detach().numpy()], [reference.detach().numpy()])


LINEAR_INPUTS = [
    given
    for given in drawn(LINEAR)
    if not given.constructor_input.kwargs["out_features"]
    and given.constructor_input.kwargs["options"] is None
]


@pytest.mark.parametrize("given", LINEAR_INPUTS)
def test_a_fused_pass_has_the_values_and_gradients_of_the_linear_module(given):
    made = given.constructor_input
    module = BY_NAME[LINEAR].module_cls(*made.args, **made.kwargs)
    features, labels = given.forward_input.args
    ids = not labels.is_floating_point()
    if not ids:
        labels = labels / labels.sum(-1, keepdim=True)
    weights = list(module.parameters())  # [V, D], and a bias if there is one
    ours = linear_softmax_cross_entropy(
        features,
        weights[0],
        labels,
        bias=weights[1] if len(weights) > 1 else None,
        class_weight=None if module.weight is None else module.weight.tolist(),
        label_smoothing=module.label_smoothing,
        ignore_index=made.kwargs["ignore_index"],
        transpose_kernel=True,
        reduction=reduction_of(made.kwargs, by_weights=ids),
    )
    tensors = [features, *weights]
    expected = solved(module(features, labels), tensors)
    assert_same(solved(ours, tensors), expected)


# What torch refuses, by its message, and whether we do too. If not, see the docstring.
REFUSED = {
    "Expected floating point type for target": False,
    "expected target dtype to be Long or Byte": True,  # as fractions, which are drawn
    "Expected input batch_size": True,
    "weight tensor should be defined": True,
    "expected weight shape": True,
    "ignore_index is not supported": False,
    "label_smoothing must be between": True,
    "expected label_smoothing to be in range": True,
    "Expected target size": True,
    "expected equal input and linear_weight": True,
}
ERRORS = [
    (name, error)
    for name in ("CrossEntropyLoss", LINEAR)
    for error in drawn(name, "module_error_inputs_func")
]


@pytest.mark.parametrize(
    ("name", "error"), ERRORS, ids=[f"{n}-{e.error_regex}" for n, e in ERRORS]
)
def test_what_the_module_refuses_is_refused_where_it_means_the_same(name, error):
    made = error.module_error_input.constructor_input
    scores, labels = error.module_error_input.forward_input.args

    def ours():
        if name != LINEAR:
            return softmax(made.kwargs, scores, labels, from_logits=True)
        weight = made.kwargs.get("weight")
        return linear_softmax_cross_entropy(
            scores,
            torch.ones(made.args[::-1], dtype=scores.dtype),
            labels,
            class_weight=None if weight is None else weight.tolist(),
            label_smoothing=made.kwargs.get("label_smoothing", 0.0),
            transpose_kernel=True,
        )

    (refused,) = (REFUSED[text] for text in REFUSED if text in error.error_regex)
    if not refused:
        assert torch.isfinite(ours())
        return
    with pytest.raises(ValueError, match="Received"):
        ours()


def test_torch_still_has_these_inputs():
    assert len(INPUTS) > 140
    assert len(LINEAR_INPUTS) > 50
    assert len(ERRORS) >= 12
