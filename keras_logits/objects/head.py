"""The head: a last layer that computes logits and marks them."""

from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any, Unpack

import keras
from keras import ops

from keras_logits import kernels
from keras_logits._keras_private import get_keras_mask, set_keras_mask
from keras_logits._typing import Activation, LayerOptions, Report, Returns, Tensor
from keras_logits.kernels import tensors
from keras_logits.kernels.contract import Linear, LinearLogits
from keras_logits.maths.labels import is_float
from keras_logits.maths.links import (
    accurate_dtype,
    check_activation,
    check_returns,
    probabilities,
)
from keras_logits.maths.shapes import number_of_features
from keras_logits.maths.squash import Squash
from keras_logits.objects.reports import Reports, checked_reports
from keras_logits.objects.same_keras import check_same_keras, is_symbolic
from keras_logits.objects.shown import as_call, default_name
from keras_logits.objects.tied import Tie
from keras_logits.objects.unread import LossesOfItsModel
from keras_logits.options import check_positive
from keras_logits.provenance import Mark, Recipe, mark, recorded

_OF_WEIGHTS = (
    "kernel_initializer",
    "bias_initializer",
    "kernel_regularizer",
    "bias_regularizer",
    "kernel_constraint",
    "bias_constraint",
)


class LogitsHead:
    r"""A last layer that computes logits and marks them.

    $$z = \operatorname{softcap}(x W + b) / \tau, \qquad
      \operatorname{softcap}(a) = s \tanh(a / s)$$

    Use it in place of `Dense(units, activation="softmax")`. The losses of this package
    read the mark, so they know what they receive. Logits are float32 (float64 under
    float64) whatever the compute dtype, and their product is accumulated in float32.
    With the same seed, a model starts from the same weights as with `Dense`.

    Args:
        units: the number of classes, or of independent units.
        activation: the function that turns the logits into probabilities, "softmax"
            (one true class) or "sigmoid" (independent units).
        returns: "logits", or "probabilities" to return marked probabilities. Stock
            metrics and `predict` then see probabilities, and the loss still uses the
            logits.
        use_bias: whether to add the bias b.
        softcap: s, the bound on the logits, applied before the temperature; None for
            no bound. A bias of -inf still masks its class.
        temperature: the divisor of the logits. Above 1 it flattens the probabilities.
        tied_to: an `Embedding` with `units` rows. Its matrix, transposed, is the
            kernel, and this layer creates none of its own. With a
            `ReversibleEmbedding`, the head does what `embedding(x, reverse=True)` does.
            It uses `reverse_embeddings` under `tie_weights=False`, `logit_soft_cap` and
            `reverse_dtype`.
        reports: the names of figures to show in `fit` and `evaluate`: "accuracy",
            "top_5_accuracy", "cross_entropy", "perplexity", "entropy" (in nats) and
            "invalid_labels" (a count). A sigmoid has no top-5 accuracy and no
            perplexity. The loss computes the figures in its own pass, with its sample
            weights and masks, and without smoothing or class weights. (A metric in
            `compile` would allocate all logits.) Each name starts with the name of the
            layer.
        kernel_initializer: initializer of the kernel W.
        bias_initializer: initializer of the bias.
        kernel_regularizer: regularizer of the kernel.
        bias_regularizer: regularizer of the bias.
        activity_regularizer: regularizer of the logits, even if `returns` is
            "probabilities".
        kernel_constraint: constraint on the kernel.
        bias_constraint: constraint on the bias.
        name: the name of the layer, by default `softmax_head` or `sigmoid_head`.
        **kwargs: `trainable` and `dtype`, as in `Dense`.

    Call arguments:
        inputs: `[..., D]`, features.
        returns: "logits" or "probabilities", for this call only.

    Returns:
        `[..., units]`, marked, in at least float32.

    Raises:
        ValueError: if an argument is out of range, or if two arguments exclude each
            other.

    Example:
        >>> model = keras.Sequential([keras.Input((64,)), LogitsHead(10)])
        >>> model.compile("adam", loss=SoftmaxCrossEntropy())

    Source:
        Soft-cap: Gemma Team, "Gemma 2: Improving Open Language Models at a Practical
        Size", arXiv:2408.00118. Tied weights: Press and Wolf, "Using the Output
        Embedding to Improve Language Models", arXiv:1608.05859. Temperature: Guo et
        al., "On Calibration of Modern Neural Networks", arXiv:1706.04599.

    See also:
        `MarkLogits`, to keep your existing last layer.
    """

    _keras: Any
    _exponential_of_mean: Any
    makes_logits = True

    def __init__(
        self,
        units: int,
        activation: Activation = "softmax",
        *,
        returns: Returns = "logits",
        use_bias: bool = True,
        softcap: float | None = None,
        temperature: float = 1.0,
        tied_to: Any = None,
        reports: Sequence[Report] = (),
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        name: str | None = None,
        **kwargs: Unpack[LayerOptions],
    ) -> None:
        _check_units(units, check_activation(activation))
        check_returns(returns)
        check_positive("softcap", softcap, optional=True)
        check_positive("temperature", temperature)
        super().__init__(  # type: ignore[call-arg]
            name=name or default_name(self._keras, f"{activation}_head"),
            activity_regularizer=activity_regularizer,
            **{**Tie(tied_to).options(), **kwargs},
        )
        get = self._keras
        self.units = int(units)
        self.activation = activation
        self.returns = returns
        self.use_bias = use_bias
        self.softcap = None if softcap is None else float(softcap)
        self.temperature = float(temperature)
        self.reports = checked_reports(reports, activation)
        self._reports = Reports(self.reports, self)
        self._trackers = self._reports.trackers  # Keras finds its metrics by attribute
        self._compiled_losses = LossesOfItsModel(self)
        self._tie = Tie(tied_to)
        self.kernel_initializer = get.initializers.get(kernel_initializer)
        self.bias_initializer = get.initializers.get(bias_initializer)
        self.kernel_regularizer = get.regularizers.get(kernel_regularizer)
        self.bias_regularizer = get.regularizers.get(bias_regularizer)
        self.kernel_constraint = get.constraints.get(kernel_constraint)
        self.bias_constraint = get.constraints.get(bias_constraint)
        for name in (*_OF_WEIGHTS, "activity_regularizer"):
            check_same_keras(self, getattr(self, name), name)
        self.supports_masking = True
        if tied_to is not None:
            self._check_tied(kernel_initializer)

    def build(self, input_shape: Any) -> None:
        features = number_of_features(input_shape)
        self._tie.rebuilt = False
        if self.tied_to is not None:
            self._check_tied_width(features)
            if not self.tied_to.built:
                self.tied_to.build(None)
            self._tie.check()
            self._embedding = self.tied_to  # its weights are this layer's from now on
        else:
            self.kernel = self.add_weight(  # type: ignore[attr-defined]
                name="kernel",
                shape=(features, self.units),
                initializer=self.kernel_initializer,
                regularizer=self.kernel_regularizer,
                constraint=self.kernel_constraint,
                autocast=False,  # it is cast where it is used
            )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(  # type: ignore[attr-defined]
                name="bias",
                shape=(self.units,),
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
                autocast=False,  # half precision would round it, in float32 logits
            )
        self.built = True

    @property
    def tied_to(self) -> Any:
        """The `Embedding` whose matrix is the kernel, or None."""
        return self._tie.layer

    def build_from_config(self, config: dict[str, Any]) -> None:
        if not self._tie.rebuilt:  # that is built where it is called, tied again
            super().build_from_config(config)  # type: ignore[misc]

    def __call__(
        self, inputs: Tensor, returns: Returns | None = None, **kwargs: Any
    ) -> Tensor:
        check_same_keras(self, inputs, "inputs")
        if self._tie.rebuilt:
            self._tie.follow(inputs)
            self.built = False  # says Keras 3 after build_from_config, whatever it did
        if is_symbolic(inputs):
            if returns is not None:
                kwargs["returns"] = check_returns(returns)
            return super().__call__(inputs, **kwargs)  # type: ignore[misc]
        # The mark is set here, where a rematerialised call has returned already, and on
        # tensors that live outside of it.
        wanted = check_returns(returns or self.returns)
        logits = super().__call__(  # type: ignore[misc]
            inputs, returns="logits", **kwargs
        )
        self._compiled_losses.look()
        found = Mark(self.activation, head=self, recipe=self._recipe(inputs, logits))
        if wanted == "logits":
            mark(logits, found)
            return logits
        made = probabilities(logits, self.activation)
        set_keras_mask(made, get_keras_mask(logits))
        mark(made, replace(found, logits=logits))
        return made

    def _recipe(self, inputs: Tensor, logits: Tensor) -> Recipe | None:
        """What the logits were computed from, if it is certain.

        `logits_of` records that on the tensor that it makes. A rematerialised call
        hands on another one, made in the same way, if no subclass has its own.
        """
        own, given = LogitsHead, type(self)
        as_ours = given.call is own.call and given.logits_of is own.logits_of
        if getattr(self, "_remat_mode", None) is not None and as_ours:
            return Recipe.of(self._linear(inputs))
        return recorded(logits)

    def call(self, inputs: Tensor, returns: Returns | None = None) -> Tensor:
        logits = self.logits_of(inputs)
        if check_returns(returns or self.returns) == "logits":
            return logits
        return probabilities(logits, self.activation)

    def rematerialized_call(self, layer_call: Any, *args: Any, **kwargs: Any) -> Any:
        # What Keras rematerialises takes tensors alone: no options, no keywords.
        def call(inputs: Tensor) -> Tensor:
            return layer_call(inputs, returns=kwargs.get("returns"))

        again = super().rematerialized_call(call, *args)  # type: ignore[misc]
        return lambda inputs, returns=None: again(inputs)

    def logits_of(self, inputs: Tensor) -> Tensor:
        """Computes the logits of features of any rank."""
        linear = self._linear(inputs)
        logits = kernels.logits_of(linear)
        mark(logits, Mark(self.activation, head=self, recipe=Recipe.of(linear)))
        return logits

    def with_frozen(self, linear: Linear) -> Linear:
        """Returns the operands, with gradients stopped for frozen weights."""
        features, kernel, bias = linear
        owner: Any = self.tied_to or self
        if not owner.trainable:
            kernel = tensors.as_frozen(kernel)
        if bias is not None and not self.trainable:  # type: ignore[attr-defined]
            bias = tensors.as_frozen(bias)
        return Linear(features, kernel, bias)

    def _linear(self, inputs: Tensor) -> LinearLogits:
        inputs = ops.convert_to_tensor(inputs)
        own_dtype = getattr(self, "autocast", getattr(self, "_autocast", True))
        if self._tie.dtype is not None or own_dtype or not is_float(inputs):
            dtype = self._tie.dtype or self.compute_dtype  # type: ignore[attr-defined]
            inputs = ops.cast(inputs, dtype)
        tied = self.tied_to is not None
        kernel, transposed = self._tie.kernel() if tied else (self.kernel, False)
        linear = Linear(inputs, kernels.read(kernel), self._bias())
        squash = Squash(self._tie.softcap(self.softcap), self.temperature)
        return LinearLogits(linear, squash, transposed)

    def _bias(self) -> Tensor | None:
        return None if self.bias is None else kernels.read(self.bias)

    def report(self, figures: Tensor, weights: Tensor) -> None:
        """Adds the figures of a batch to the reports. The loss calls this."""
        self._reports.update(figures, weights)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        return (*tuple(input_shape)[:-1], self.units)

    def compute_output_spec(
        self, inputs: Tensor, returns: Returns | None = None
    ) -> Any:
        dtype = self._tie.dtype or self.compute_dtype  # type: ignore[attr-defined]
        dtype = accurate_dtype(dtype)
        return keras.KerasTensor(self.compute_output_shape(inputs.shape), dtype)

    def __repr__(self) -> str:
        return as_call(self, _OF_WEIGHTS)

    def get_config(self) -> dict[str, Any]:
        own = self._keras
        serialize = own.saving.serialize_keras_object
        return {
            **super().get_config(),  # type: ignore[misc]
            "units": self.units,
            "activation": self.activation,
            "returns": self.returns,
            "use_bias": self.use_bias,
            "softcap": self.softcap,
            "temperature": self.temperature,
            "reports": list(self.reports),
            "tied_to": None if self.tied_to is None else serialize(self.tied_to),
            "activity_regularizer": own.regularizers.serialize(
                self.activity_regularizer  # type: ignore[attr-defined]
            ),
            **{
                name: getattr(own, name.partition("_")[2] + "s").serialize(
                    getattr(self, name)
                )
                for name in _OF_WEIGHTS
            },
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "LogitsHead":
        tie = Tie(config.get("tied_to"))
        if isinstance(tie.layer, dict):
            tie = Tie(cls._keras.layers.deserialize(tie.layer), rebuilt=True)
        head = cls(**{**config, "tied_to": tie.layer})
        head._tie = tie
        return head

    def _check_tied(self, kernel_initializer: Any) -> None:
        check_same_keras(self, self.tied_to, "tied_to")
        self._tie.softcap(self.softcap)
        if not (
            hasattr(self.tied_to, "input_dim") and hasattr(self.tied_to, "output_dim")
        ):
            raise ValueError(
                "`tied_to` must be an Embedding layer. Its matrix becomes the kernel.\n"
                f"Received: tied_to={self.tied_to!r}\n"
                f"Fix: tied_to=keras.layers.Embedding({self.units}, width)"
            )
        if self.tied_to.input_dim != self.units:
            raise ValueError(
                "`tied_to` must have as many rows as the head has units.\n"
                f"Received: an Embedding of {self.tied_to.input_dim} rows and "
                f"units={self.units}\n"
                f"Fix: LogitsHead({self.tied_to.input_dim}, tied_to=...)"
            )
        mine = (self.kernel_regularizer, self.kernel_constraint)
        given = kernel_initializer != "glorot_uniform" and (
            type(self.kernel_initializer).__name__ != "GlorotUniform"
        )
        if given or any(thing is not None for thing in mine):
            raise ValueError(
                "`tied_to` excludes the arguments of a kernel.\n"
                "Received: tied_to with kernel_initializer, kernel_regularizer or "
                "kernel_constraint\n"
                "Fix: Embedding(..., embeddings_initializer=...), and likewise "
                "embeddings_regularizer and embeddings_constraint."
            )

    def _check_tied_width(self, features: int) -> None:
        if self.tied_to.output_dim != features:
            raise ValueError(
                "`tied_to` must be as wide as the features.\n"
                f"Received: an Embedding of width {self.tied_to.output_dim} and "
                f"features of width {features}\n"
                f"Fix: keras.layers.Dense({self.tied_to.output_dim}) before the head."
            )


def _check_units(units: Any, activation: str) -> None:
    if not isinstance(units, Integral) or isinstance(units, bool) or units < 1:
        raise ValueError(
            "`units` must be a whole number of at least 1.\n"
            f"Received: units={units!r}\n"
            "Fix: LogitsHead(10), for 10 classes."
        )
    if units == 1 and activation == "softmax":
        raise ValueError(
            "`units` must be at least 2 for a softmax. The softmax of a single class "
            "is always 1, so it learns nothing.\n"
            "Received: units=1\n"
            "Fix: LogitsHead(1, activation='sigmoid') with SigmoidCrossEntropy(), for "
            "a yes/no output."
        )
