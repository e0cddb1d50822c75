"""What a type checker has to accept."""

import numpy as np

from keras_logits import (
    LogitsHead,
    MarkLogits,
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
    linear_softmax_cross_entropy,
    probabilities,
    softmax_cross_entropy,
)

head = LogitsHead(
    10,
    "softmax",
    returns="probabilities",
    softcap=30,
    reports=["accuracy", "perplexity"],
    kernel_initializer="zeros",
    name="digit",
    trainable=False,
    dtype="mixed_bfloat16",
)
logits = head(np.ones((2, 3)), returns="logits")
MarkLogits("sigmoid", name="mark")
SoftmaxCrossEntropy(True, class_weight={0: 2.0}, fused="auto", reduction=None)
SoftmaxCrossEntropy(fused=False, reduction="sum", memory_budget=2**20)
SigmoidCrossEntropy("auto", pos_weight=[1.0, 2.0, 3.0], ignore_index=-1)
softmax_cross_entropy([1, 2], logits, label_smoothing=0.1)
linear_softmax_cross_entropy(np.ones((2, 3)), np.ones((3, 4)), [0, 1], reduction="sum")
probabilities(logits, "sigmoid", axis=0)
