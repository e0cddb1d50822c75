"""The Embedding that a head is tied to, also where a model was rebuilt from configs.

A config can only describe an Embedding. Keras makes one layer again of two
descriptions only in some files, and not in `clone_model`, in JSON, in nested models or
in tf-keras: there the head would be left with a copy, untied without a word. So a layer
that was made from a config gives way to that of its name which the features come from.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from keras import ops

from keras_logits import kernels
from keras_logits._typing import Tensor


@dataclass
class Tie:
    """A reference to an Embedding that Keras does not track, so that it can change.

    Args:
        layer: the Embedding, or None.
        rebuilt: whether it was made from a config, and may yet give way.
    """

    layer: Any
    rebuilt: bool = False

    def matrix(self) -> Tensor:
        """The Embedding's matrix `[units, D]`, in floats also where it is quantised."""
        matrix = kernels.read(self.layer.embeddings)
        mode = getattr(self.layer, "quantization_mode", None)
        if mode is None:
            return matrix
        if mode != "int8":
            raise ValueError(
                "`tied_to` must hold floats or int8, for the head to read. Received: "
                f"an Embedding that was quantised to {mode!r}. Write "
                'embedding.quantize("int8").'
            )
        scale = ops.expand_dims(self.layer.embeddings_scale, -1)
        return ops.cast(matrix, scale.dtype) / scale

    def follow(self, features: Tensor) -> None:
        """Goes over to the layer of the same name that symbolic features come from."""
        found = [
            layer
            for layer in _layers_before(features)
            if isinstance(layer, type(self.layer)) and layer.name == self.layer.name
        ]
        if found and not any(layer is self.layer for layer in found):
            self.layer = found[0]


def _layers_before(features: Tensor) -> Iterator[Any]:
    """All layers that a symbolic tensor was computed by, those inside models too."""
    made_by, index, *_ = getattr(features, "_keras_history", (None, 0))
    nodes = [made_by._inbound_nodes[index]] if made_by is not None else []
    seen = set()
    while nodes:
        node = nodes.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        layer = node.layer if hasattr(node, "layer") else node.operation
        if hasattr(layer, "_flatten_layers"):
            yield from layer._flatten_layers()
        nodes.extend(node.parent_nodes)
