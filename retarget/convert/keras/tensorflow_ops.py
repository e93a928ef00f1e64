"""Layers that call a function of TensorFlow by name, as Keras 2 writes ``tf.nn.relu(x)`` of a functional model.

Keras 2 calls whatever the file names, ``tf.io.write_file`` too. Here it is a function that computes, or none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

OPERATOR_LAYERS = frozenset({"TFOpLambda", "SlicingOpLambda"})

_MATH = """
abs accumulate_n acos acosh add add_n argmax argmin asin asinh atan atan2 atanh ceil cos cosh cumprod cumsum divide
divide_no_nan equal erf erfc exp expm1 floor floordiv floormod greater greater_equal invert_permutation is_finite
is_inf is_nan l2_normalize less less_equal log log1p log_sigmoid log_softmax logical_and logical_not logical_or
logical_xor maximum minimum mod multiply multiply_no_nan negative not_equal pow reciprocal reciprocal_no_nan reduce_all
reduce_any reduce_euclidean_norm reduce_logsumexp reduce_max reduce_mean reduce_min reduce_prod reduce_std reduce_sum
reduce_variance rint round rsqrt scalar_mul sigmoid sign sin sinh softmax softplus softsign sqrt square
squared_difference subtract tan tanh top_k truediv xdivy xlogy
"""
_NN = """
avg_pool avg_pool1d avg_pool2d avg_pool3d bias_add conv1d conv2d conv3d crelu depth_to_space depthwise_conv2d elu gelu
l2_normalize leaky_relu log_softmax max_pool max_pool1d max_pool2d max_pool3d moments relu relu6 selu sigmoid silu
softmax softplus softsign space_to_depth swish tanh top_k
"""
_PLAIN = """
abs add argmax argmin boolean_mask broadcast_to cast clip_by_value concat cos cumsum divide einsum equal exp
expand_dims eye fill gather gather_nd greater greater_equal identity less less_equal linspace logical_and logical_not
logical_or matmul maximum minimum multiply negative not_equal one_hot ones ones_like pad pow range rank reduce_all
reduce_any reduce_max reduce_mean reduce_min reduce_prod reduce_sum repeat reshape reverse roll round shape sigmoid sign
sin size slice split sqrt square squeeze stack stop_gradient strided_slice subtract tanh tensordot tile transpose
truediv unstack where zeros zeros_like
"""
_OTHERS = """
__operators__.add __operators__.getitem compat.v1.shape compat.v1.size compat.v1.transpose compat.v1.gather
compat.v1.squeeze compat.v1.expand_dims compat.v1.nn.softmax compat.v1.concat image.resize linalg.matmul linalg.matvec
linalg.matrix_transpose linalg.l2_normalize linalg.norm linalg.diag_part linalg.band_part linalg.tensordot linalg.einsum
keras.activations.relu keras.activations.gelu keras.activations.softmax keras.activations.sigmoid
keras.activations.tanh keras.activations.swish keras.activations.elu keras.activations.selu keras.activations.softplus
keras.activations.hard_sigmoid keras.backend.mean keras.backend.sum keras.backend.concatenate keras.backend.reshape
"""

SYMBOLS = frozenset(
    {f"math.{name}" for name in _MATH.split()}
    | {f"nn.{name}" for name in _NN.split()}
    | {*_PLAIN.split(), *_OTHERS.split()}
)
"""Functions of TensorFlow that compute tensors from tensors: none reads or writes anything, or takes a function."""


def is_known(symbol: str) -> bool:
    """Whether ``symbol``, such as ``math.add``, only computes."""
    return symbol in SYMBOLS


def make_layers(keras: ModuleType, tf: ModuleType) -> dict[str, type]:
    """Classes for Keras 3 that stand for those of Keras 2."""

    class TFOpLambda(keras.layers.Layer):  # type: ignore[misc, name-defined]
        """Calls the function of TensorFlow called ``function``."""

        def __init__(self, function: str, **settings: Any) -> None:
            super().__init__(**settings)
            self.symbol = function

        def call(self, inputs: Any, **keywords: Any) -> Any:
            keywords.pop("name", None)
            return _resolve(self.symbol, tf, keras)(_slices(inputs), **_slices(keywords))

        def compute_mask(self, inputs: Any, previous_mask: Any = None) -> None:  # noqa: ARG002 - Keras's own call
            return None

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "function": self.symbol}

    return dict.fromkeys(OPERATOR_LAYERS, TFOpLambda)


def _resolve(symbol: str, tf: ModuleType, keras: ModuleType) -> Callable[..., Any]:
    if symbol == "__operators__.getitem":
        return lambda tensor, slice_spec: tensor[tuple(slice_spec) if isinstance(slice_spec, list) else slice_spec]
    if symbol == "__operators__.add":
        return lambda x, y: x + y
    owner: Any = tf
    if symbol.startswith("keras.activations."):
        owner, symbol = keras.activations, symbol[len("keras.activations.") :]
    for part in symbol.split("."):
        owner = getattr(owner, part)
    return owner  # type: ignore[no-any-return]


def _slices(value: Any) -> Any:
    """``{"start": 1, "stop": None, "step": 2}`` as the slice that it stands for."""
    if isinstance(value, dict):
        if set(value) == {"start", "stop", "step"}:
            return slice(value["start"], value["stop"], value["step"])
        return {name: _slices(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_slices(item) for item in value)
    return value
