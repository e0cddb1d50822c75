"""The layers that mark: a head that computes logits, and a mark for another's."""

from typing import Any

from keras import ops

from keras_logits import kernels
from keras_logits._keras_private import get_keras_mask, set_keras_mask
from keras_logits._typing import Activation, Tensor
from keras_logits.maths.links import check_activation, probabilities
from keras_logits.objects.same_keras import check_same_keras
from keras_logits.provenance import Mark, mark

_RETURNS = ("logits", "probabilities")


class LogitsHead:
    r"""A last layer that computes logits and marks them as such.

    $$z = \operatorname{softcap}(x W + b) / \tau, \qquad
      \operatorname{softcap}(a) = s \tanh(a / s)$$

    It stands where `Dense(units, activation="softmax")` stood. A loss of this package
    reads the mark, and so knows what it was given. Logits are float32 (float64 under
    float64) whatever the compute dtype, and their product is accumulated in float32. A
    model that was seeded starts where its twin with `Dense` starts.

    Args:
        units: number of classes, or of independent units.
        activation: what turns the logits into probabilities: "softmax" (one true
            class) or "sigmoid" (independent units).
        returns: "logits", or "probabilities" to give probabilities that carry the
            mark: stock metrics and `predict` see these, the loss still sees the
            logits.
        use_bias: whether to add the bias b.
        softcap: s, the bound of the logits before temperature; None for no bound.
        temperature: the divisor of the logits. Above 1 it flattens probabilities.
        tied_to: an `Embedding` of `units` rows whose matrix, transposed, is used as
            kernel; this layer then has none of its own.
        kernel_initializer: initializer of the kernel W.
        bias_initializer: initializer of the bias.
        kernel_regularizer: regularizer of the kernel.
        bias_regularizer: regularizer of the bias.
        kernel_constraint: constraint on the kernel.
        bias_constraint: constraint on the bias.
        **kwargs: `activity_regularizer`, `name`, `trainable`, `dtype`, as in `Dense`.

    Call arguments:
        inputs: `[..., D]`, features.
        returns: "logits" or "probabilities" for this call alone.

    Returns:
        `[..., units]`, marked, in at least float32.

    Raises:
        ValueError: if an argument is out of its range, or two exclude each other.

    Example:
        >>> model = keras.Sequential([keras.Input((64,)), LogitsHead(10)])
        >>> model.compile("adam", loss=SoftmaxCrossEntropy())

    Source:
        Soft-cap: Gemma Team, "Gemma 2: Improving Open Language Models at a Practical
        Size", arXiv:2408.00118. Tied weights: Press and Wolf, "Using the Output
        Embedding to Improve Language Models", arXiv:1608.05859. Temperature: Guo et
        al., "On Calibration of Modern Neural Networks", arXiv:1706.04599.

    See also:
        `MarkLogits`, for a model whose last layer is somebody else's.
    """

    _keras: Any

    def __init__(
        self,
        units: int,
        activation: Activation = "softmax",
        *,
        returns: str = "logits",
        use_bias: bool = True,
        softcap: float | None = None,
        temperature: float = 1.0,
        tied_to: Any = None,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        _check_units(units, check_activation(activation))
        _check_returns(returns)
        _check_positive("softcap", softcap, optional=True)
        _check_positive("temperature", temperature)
        super().__init__(**kwargs)
        get = self._keras
        self.units = int(units)
        self.activation = activation
        self.returns = returns
        self.use_bias = use_bias
        self.softcap = softcap
        self.temperature = temperature
        self.tied_to = tied_to
        self.kernel_initializer = get.initializers.get(kernel_initializer)
        self.bias_initializer = get.initializers.get(bias_initializer)
        self.kernel_regularizer = get.regularizers.get(kernel_regularizer)
        self.bias_regularizer = get.regularizers.get(bias_regularizer)
        self.kernel_constraint = get.constraints.get(kernel_constraint)
        self.bias_constraint = get.constraints.get(bias_constraint)
        self.supports_masking = True
        if tied_to is not None:
            self._check_tied(kernel_initializer)

    def build(self, input_shape: Any) -> None:
        features = _last_size(input_shape)
        if self.tied_to is not None:
            self._check_tied_width(features)
            if not self.tied_to.built:
                self.tied_to.build(None)
        else:
            self.kernel = self.add_weight(  # type: ignore[attr-defined]
                name="kernel",
                shape=(features, self.units),
                initializer=self.kernel_initializer,
                regularizer=self.kernel_regularizer,
                constraint=self.kernel_constraint,
            )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(  # type: ignore[attr-defined]
                name="bias",
                shape=(self.units,),
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )
        self.built = True

    def __call__(self, inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        check_same_keras(self, inputs, "inputs")
        if self._keras.backend.is_keras_tensor(inputs):
            return super().__call__(inputs, *args, **kwargs)  # type: ignore[misc]
        # The mark is set here, where a rematerialised call has returned already, and on
        # tensors that live outside of it.
        wanted = _check_returns(kwargs.pop("returns", None) or self.returns)
        logits = super().__call__(  # type: ignore[misc]
            inputs, *args, returns="logits", **kwargs
        )
        if wanted == "logits":
            mark(logits, Mark(self.activation, head=self, features=inputs))
            return logits
        made = probabilities(logits, self.activation)
        set_keras_mask(made, get_keras_mask(logits))
        mark(made, Mark(self.activation, logits, head=self, features=inputs))
        return made

    def call(self, inputs: Tensor, returns: str | None = None) -> Tensor:
        logits = self.logits_of(inputs)
        if _check_returns(returns or self.returns) == "logits":
            return logits
        return probabilities(logits, self.activation)

    def logits_of(self, inputs: Tensor) -> Tensor:
        """The formula, on features of any rank."""
        inputs = ops.convert_to_tensor(inputs)
        logits = kernels.matmul(inputs, self._kernel_for(inputs))
        if self.bias is not None:
            logits = logits + ops.cast(self.bias, logits.dtype)
        if self.softcap is not None:
            logits = self.softcap * ops.tanh(logits / self.softcap)
        if self.temperature != 1.0:
            logits = logits / self.temperature
        return logits

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        return (*tuple(input_shape)[:-1], self.units)

    def get_config(self) -> dict[str, Any]:
        keras = self._keras
        tied = self.tied_to
        return {
            **super().get_config(),  # type: ignore[misc]
            "units": self.units,
            "activation": self.activation,
            "returns": self.returns,
            "use_bias": self.use_bias,
            "softcap": self.softcap,
            "temperature": self.temperature,
            "tied_to": tied and keras.saving.serialize_keras_object(tied),
            **{
                f"{weight}_{kind}": getattr(keras, f"{kind}s").serialize(
                    getattr(self, f"{weight}_{kind}")
                )
                for weight in ("kernel", "bias")
                for kind in ("initializer", "regularizer", "constraint")
            },
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "LogitsHead":
        config = dict(config)
        if isinstance(config.get("tied_to"), dict):
            deserialize = cls._keras.saving.deserialize_keras_object
            config["tied_to"] = deserialize(config["tied_to"])
        return cls(**config)

    def _kernel_for(self, inputs: Tensor) -> Tensor:
        if self.tied_to is None:
            return ops.cast(self.kernel, inputs.dtype)
        return ops.transpose(ops.cast(self.tied_to.embeddings, inputs.dtype))

    def _check_tied(self, kernel_initializer: Any) -> None:
        check_same_keras(self, self.tied_to, "tied_to")
        if not hasattr(self.tied_to, "input_dim"):
            raise ValueError(
                "`tied_to` must be an Embedding layer, whose matrix becomes the kernel. "
                f"Received: tied_to={self.tied_to!r}. Write "
                f"tied_to=keras.layers.Embedding({self.units}, width)."
            )
        if self.tied_to.input_dim != self.units:
            raise ValueError(
                "`tied_to` must have as many rows as the head has units. Received: an "
                f"Embedding of {self.tied_to.input_dim} rows and units={self.units}. "
                f"Write LogitsHead({self.tied_to.input_dim}, tied_to=...)."
            )
        mine = (self.kernel_regularizer, self.kernel_constraint)
        given = kernel_initializer != "glorot_uniform" and (
            type(self.kernel_initializer).__name__ != "GlorotUniform"
        )
        if given or any(thing is not None for thing in mine):
            raise ValueError(
                "`tied_to` excludes the arguments of a kernel, since there is none. "
                "Received: tied_to with kernel_initializer, kernel_regularizer or "
                "kernel_constraint. Give these to the Embedding, as "
                "embeddings_initializer, embeddings_regularizer, embeddings_constraint."
            )

    def _check_tied_width(self, features: int) -> None:
        if self.tied_to.output_dim != features:
            raise ValueError(
                "`tied_to` must be as wide as the features. Received: an Embedding of "
                f"width {self.tied_to.output_dim} and features of width {features}. "
                f"Write keras.layers.Dense({self.tied_to.output_dim}) before the head."
            )


class MarkLogits:
    """Marks the output of somebody else's last layer as logits.

    The same values as a new tensor: two marks on one tensor would overwrite each other.

    Args:
        activation: what turns these logits into probabilities: "softmax" or "sigmoid".
        **kwargs: `name`, `dtype`.

    Call arguments:
        inputs: `[..., K]`, logits. Never probabilities: nothing can check that here.

    Returns:
        The same values, marked.

    Raises:
        ValueError: if `activation` is neither of the two.

    Example:
        >>> model = keras.Sequential([backbone_with_logits, MarkLogits("softmax")])

    See also:
        `LogitsHead`, which computes the logits too.
    """

    _keras: Any

    def __init__(self, activation: Activation = "softmax", **kwargs: Any) -> None:
        check_activation(activation)
        # Half precision would round the logits of a float32 layer.
        super().__init__(autocast=False, **kwargs)  # type: ignore[call-arg]
        self.activation = activation
        self.supports_masking = True

    def __call__(self, inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        check_same_keras(self, inputs, "inputs")
        outputs = super().__call__(inputs, *args, **kwargs)  # type: ignore[misc]
        if not self._keras.backend.is_keras_tensor(outputs):
            mark(outputs, Mark(self.activation))
        return outputs

    def call(self, inputs: Tensor) -> Tensor:
        return ops.copy(inputs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),  # type: ignore[misc]
            "activation": self.activation,
        }


def _check_units(units: Any, activation: str) -> None:
    if not isinstance(units, int) or isinstance(units, bool) or units < 1:
        raise ValueError(
            "`units` must be a whole number of at least 1. Received: "
            f"units={units!r}. Write the number of classes, as in LogitsHead(10)."
        )
    if units == 1 and activation == "softmax":
        raise ValueError(
            "`units` must be at least 2 for a softmax: that of a single class is always "
            "1, and learns nothing. Received: units=1. For a yes/no output write "
            "LogitsHead(1, activation='sigmoid') and SigmoidCrossEntropy()."
        )


def _check_returns(returns: Any) -> str:
    if returns not in _RETURNS:
        raise ValueError(
            "`returns` must be 'logits' or 'probabilities'. Received: "
            f"returns={returns!r}. Write returns='probabilities' for a model whose "
            "predict() gives probabilities."
        )
    return str(returns)


def _check_positive(name: str, value: Any, optional: bool = False) -> None:
    if (value is None and optional) or (isinstance(value, int | float) and value > 0):
        return
    neutral = "None" if optional else "1.0"
    raise ValueError(
        f"`{name}` must be a number above 0. Received: {name}={value!r}. "
        f"Write {name}={neutral} to do without it."
    )


def _last_size(input_shape: Any) -> int:
    size = tuple(input_shape)[-1]
    if size is None:
        raise ValueError(
            "`inputs` must have a known last size, the number of features. Received: "
            f"shape {tuple(input_shape)}. Write keras.Input((number_of_features,))."
        )
    return int(size)
