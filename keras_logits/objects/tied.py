"""The Embedding that a head is tied to, also where a model was rebuilt from configs.

A config can only describe an Embedding. Keras makes one layer again of two
descriptions only in some files, and not in `clone_model`, in JSON, in nested models or
in tf-keras: there the head would be left with a copy, untied without a word. So a layer
that was made from a config gives way to that of its name which the features come from.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from keras_logits import kernels
from keras_logits._keras_private import AutocastScope
from keras_logits._typing import Tensor
from keras_logits.options import check_positive


@dataclass
class Tie:
    """A reference to an Embedding that Keras does not track, so that it can change.

    Args:
        layer: the Embedding, or None.
        rebuilt: whether it was made from a config, and may yet give way.
    """

    layer: Any
    rebuilt: bool = False

    @property
    def dtype(self) -> str | None:
        """What a `ReversibleEmbedding` says that its products are computed in."""
        given = getattr(self.layer, "reverse_dtype", None)
        return None if given is None else str(keras.backend.standardize_dtype(given))

    def options(self) -> dict[str, Any]:
        """What the head has to tell its Keras."""
        # Or features would be rounded to the compute dtype before the head sees them.
        return {} if self.dtype is None else {"autocast": False}

    def softcap(self, own: float | None) -> float | None:
        """The head's soft-cap, or that of a `ReversibleEmbedding`.

        Raises:
            ValueError: if both have one, and they differ.
        """
        given = getattr(self.layer, "logit_soft_cap", None)
        check_positive("tied_to.logit_soft_cap", given, optional=True)
        if own is not None and given is not None and own != given:
            raise ValueError(
                "`softcap` must equal `tied_to.logit_soft_cap`, if both are set.\n"
                f"Received: softcap={own!r} and tied_to.logit_soft_cap={given!r}\n"
                "Fix: omit softcap. The head uses the layer's own soft-cap."
            )
        return own if given is None else float(given)

    def check(self) -> None:
        """Refuses a layer that was built without the matrix."""
        layer, name = self.layer, self._name
        if _mode_of(layer) is not None:  # whose matrices may be packed
            return
        sizes = (layer.input_dim, layer.output_dim)
        shape = sizes if self._transposed else sizes[::-1]
        matrix = getattr(layer, name, None)
        if matrix is None or tuple(matrix.shape) != shape:
            found = None if matrix is None else tuple(matrix.shape)
            raise ValueError(
                "`tied_to` must hold a matrix of the sizes that it declares.\n"
                f"Received: a {type(layer).__name__} whose `{name}` has the shape "
                f"{found}, not {shape}\n"
                f"Fix: tied_to=keras.layers.Embedding{sizes}"
            )

    def kernel(self) -> tuple[Tensor, bool]:
        """The matrix in floats, also where it is quantised; whether it is transposed.

        It is `[units, D]`, transposed, except in a `ReversibleEmbedding` that keeps a
        matrix of its own for the way back.
        """
        if self.dtype is None:
            return self._matrix(), self._transposed
        with AutocastScope(None):  # it is cast once, to what the layer says
            return self._matrix(), self._transposed

    @property
    def _transposed(self) -> bool:
        return bool(getattr(self.layer, "tie_weights", True))

    @property
    def _name(self) -> str:
        return "embeddings" if self._transposed else "reverse_embeddings"

    def _matrix(self) -> Tensor:
        mode = _mode_of(self.layer)
        if mode is None:
            return kernels.read(getattr(self.layer, self._name))
        if mode != "int8":
            raise ValueError(
                "`tied_to` must hold floats or int8.\n"
                f"Received: an Embedding that was quantised to {mode!r}\n"
                "Fix: embedding.quantize('int8')"
            )
        scale = getattr(self.layer, f"{self._name}_scale")
        scale = ops.expand_dims(scale, -1 if self._transposed else 0)
        if not (self._transposed and getattr(self.layer, "lora_enabled", False)):
            whole = kernels.read(getattr(self.layer, self._name))
            return ops.cast(whole, scale.dtype) / scale
        # `embeddings` would add the update to the integers, before they are scaled.
        layer = self.layer
        update = ops.matmul(layer.lora_embeddings_a, layer.lora_embeddings_b)
        whole = ops.cast(kernels.read(layer._embeddings), scale.dtype) / scale
        return whole + ops.cast(
            layer.lora_alpha / layer.lora_rank * update, whole.dtype
        )

    def follow(self, features: Tensor) -> None:
        """Goes over to the layer of the same name that symbolic features come from."""
        found = [
            layer
            for layer in _layers_before(features)
            if isinstance(layer, type(self.layer)) and layer.name == self.layer.name
        ]
        if found and not any(layer is self.layer for layer in found):
            self.layer = found[0]


def _mode_of(layer: Any) -> str | None:
    mode: str | None = getattr(layer, "quantization_mode", None)
    return mode


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
