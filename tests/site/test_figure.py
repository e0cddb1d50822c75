"""The figure of `docs/what-are-logits.md`: by keyboard, and with the right numbers."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_logits

PAGE = "what-are-logits.html"


@pytest.fixture
def figure(desk):
    page = desk.open(PAGE)
    figure = page.locator("logits-playground").first
    figure.locator("input[name=z0]").wait_for()
    return figure


def numbers(figure, selector):
    nodes = figure.locator(selector)
    return nodes.evaluate_all("nodes => nodes.map(node => Number(node.dataset.value))")


def logits_of(figure):
    sliders = figure.locator("input[name^=z]").all()
    return np.array([float(slider.input_value()) for slider in sliders])


def test_it_is_used_with_the_keyboard(desk, figure):
    page = desk.page
    names, start = [], logits_of(figure)
    figure.locator("input").first.focus()
    for _ in range(12):
        names.append(page.evaluate("document.activeElement.name"))
        page.keyboard.press("Tab")
    assert {"z0", "z1", "z2", "t", "y0", "y1", "y2"} <= set(names)

    first = figure.locator("input[name=z0]")
    first.focus()
    page.keyboard.press("Home")
    assert first.input_value() == "-10"
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert first.input_value() == "-9.7"
    before = logits_of(figure)
    figure.locator("button.lp-shift").focus()
    page.keyboard.press("Enter")
    np.testing.assert_allclose(logits_of(figure) - before, 5)
    figure.locator("button.lp-reset").focus()
    page.keyboard.press("Space")
    np.testing.assert_array_equal(logits_of(figure), start)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("logits", [(2, 1, -1), (0, 0, 0), (10, -10, 3.5)])
def test_its_numbers_are_those_of_the_package(figure, logits, temperature):
    for i, value in enumerate(logits):
        figure.locator(f"input[name=z{i}]").fill(str(value))
    figure.locator("input[name=t]").fill(str(temperature))
    true = figure.locator("input[type=radio]").nth(1)
    true.check()
    for i, is_true in enumerate((True, False, True)):
        figure.locator(f"input[name=y{i}]").set_checked(is_true)

    z = ops.convert_to_tensor(np.array(logits, "float64") / temperature, "float64")
    assert keras.backend.standardize_dtype(z.dtype) == "float64"
    hot, units = np.eye(3)[1], np.array([1.0, 0.0, 1.0])
    softmax = ops.convert_to_numpy(keras_logits.probabilities(z))
    sigmoid = ops.convert_to_numpy(keras_logits.probabilities(z, "sigmoid"))
    softmax_loss = keras_logits.softmax_cross_entropy([1], z[None])
    sigmoid_loss = keras_logits.sigmoid_cross_entropy(units, z)
    expected = {
        ".lp-v[data-kind=softmax]": softmax,
        ".lp-v[data-kind=sigmoid]": sigmoid,
        ".lp-g[data-kind=softmax]": (softmax - hot) / temperature,
        ".lp-g[data-kind=sigmoid]": (sigmoid - units) / temperature,
        ".lp-loss[data-kind=softmax]": softmax_loss,
        ".lp-loss[data-kind=sigmoid]": [ops.sum(sigmoid_loss)],
        ".lp-sum[data-kind=softmax]": [1.0],
    }
    for selector, values in expected.items():
        shown = numbers(figure, selector)
        values = np.asarray(ops.convert_to_numpy(values), "float64")
        np.testing.assert_allclose(shown, values, rtol=1e-12, atol=1e-12)


def test_it_tells_its_result_to_those_who_do_not_see_it(desk, figure):
    figure.locator("input[name=z0]").fill("0")
    status = figure.locator(".lp-status[role=status]")
    softmax, sigmoid = numbers(figure, ".lp-loss")
    desk.page.wait_for_function(
        "([node, text]) => node.textContent.includes(text)",
        arg=[status.element_handle(), f"{softmax:.3f}"],
    )
    assert f"{sigmoid:.3f}" in status.text_content()
