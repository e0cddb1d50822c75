"""One mistake in each line that ends in `# wrong`, which a type checker has to find."""

import numpy as np

from keras_logits import (
    LogitsHead,
    MarkLogits,
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
    linear_softmax_cross_entropy,
    logit,
    probabilities,
    sigmoid_cross_entropy,
    softmax_cross_entropy,
)

x = np.ones((2, 3))
LogitsHead()  # wrong
LogitsHead("10")  # wrong
LogitsHead(10, "relu")  # wrong
LogitsHead(10, returns="probs")  # wrong
LogitsHead(10, reports=["f1"])  # wrong
LogitsHead(10, reports="accuracy")  # wrong
LogitsHead(10, softcap="30")  # wrong
LogitsHead(10, sofcap=30.0)  # wrong
LogitsHead(10, from_logits=True)  # wrong
LogitsHead(10)(x, returns="probs")  # wrong
MarkLogits("relu")  # wrong
MarkLogits(activaton="sigmoid")  # wrong
SoftmaxCrossEntropy("yes")  # wrong
SoftmaxCrossEntropy(fused="yes")  # wrong
SoftmaxCrossEntropy(memory_budget="1 GiB")  # wrong
SoftmaxCrossEntropy(reduction="average")  # wrong
SoftmaxCrossEntropy(label_smothing=0.1)  # wrong
SoftmaxCrossEntropy(True, 0.1)  # wrong
SoftmaxCrossEntropy(pos_weight=2.0)  # wrong
SigmoidCrossEntropy(fused=True)  # wrong
SigmoidCrossEntropy(from_logits="true")  # wrong
SigmoidCrossEntropy(ignore_index="none")  # wrong
softmax_cross_entropy([1], x, focal=2.0)  # wrong
sigmoid_cross_entropy([1], x, z_loss=0.1)  # wrong
linear_softmax_cross_entropy(x, x, [1], reduction="average")  # wrong
linear_softmax_cross_entropy(x, x)  # wrong
probabilities(x, "relu")  # wrong
logit(x, axis=0)  # wrong
