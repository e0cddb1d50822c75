"""Whoever changes things between head and loss gets the right loss, or an error.

`HOSTILE_EXAMPLES=2000 pytest tests/hostile` draws as many cases anew. On torch,
`HOSTILE_INDUCTOR=1` has them compiled to C++, which needs a compiler.
"""

import math

import pytest
from hypothesis import assume, given

from hostile.stories import BACKEND, COMPILED, hostile, stories
from keras_logits.objects import fusing

REFUSALS = (ValueError,)
if BACKEND == "torch":
    import torch

    # torch's own words for a tensor that was changed where it is needed unchanged, and
    # for code that it cannot compile.
    REFUSALS = (ValueError, RuntimeError, torch._dynamo.exc.TorchDynamoException)


@pytest.fixture(autouse=True, scope="module")
def every_size_is_fused():
    """As if few classes were many, so that "auto" is fused in small cases too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fusing, "FUSED_FROM", 1)
        yield


@hostile()
@given(story=stories())
def test_the_loss_is_that_of_the_tensor_at_hand_or_an_error(story):
    try:
        found, right = story.tell()
    except REFUSALS as refusal:
        insists = story.fused is True or story.run in COMPILED
        if story.is_harmless and not insists:
            raise AssertionError(f"refused without a reason: {story}") from refusal
        return
    assume(right < math.inf)
    if math.isnan(found):
        assert not story.is_harmless
        return
    tolerance = 2e-2 if story.head == "bfloat16" else 2e-4
    assert found == pytest.approx(right, rel=tolerance, abs=1e-5), story
