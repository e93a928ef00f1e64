"""How many weight blobs the layers of a net take, by their type and parameters."""

from __future__ import annotations

from retarget.convert.caffe.net import Layer

_WITH_BIAS = {
    "Convolution": "convolution_param",
    "ConvolutionDepthwise": "convolution_param",
    "DepthwiseConvolution": "convolution_param",
    "Deconvolution": "convolution_param",
    "InnerProduct": "inner_product_param",
    "Embed": "embed_param",
}
_FIXED = {"BatchNorm": ("mean", "variance", "scale factor"), "PReLU": ("slope",), "Normalize": ("scale",)}


def expected(layer: Layer) -> tuple[str, ...]:
    """What each of its blobs is, in order; empty for a layer without weights, or of a type that is not known here."""
    message, kind = layer.message, layer.type
    if kind in _WITH_BIAS:
        return ("weight", "bias") if message.message(_WITH_BIAS[kind]).flag("bias_term", True) else ("weight",)
    if kind == "Scale":
        scale = ("scale",) if len(layer.bottoms) == 1 else ()
        return (*scale, "bias") if message.message("scale_param").flag("bias_term") else scale
    if kind == "Bias":
        return ("bias",) if len(layer.bottoms) == 1 else ()
    if kind == "BN":  # of SegNet's fork, and of PSPNet's
        return ("scale", "shift") if len(layer.blobs) == 2 else ("slope", "bias", "mean", "variance")
    if kind == "Parameter":
        return ("parameter",)
    if kind in ("LSTM", "RNN"):
        hidden = 2 if kind == "LSTM" else 1
        exposed = hidden if message.message("recurrent_param").flag("expose_hidden") else 0
        static = ("static weight",) if len(layer.bottoms) > 2 + exposed else ()
        own = ("input weight", "bias", *static, "hidden weight")
        return own if kind == "LSTM" else (*own, "output weight", "output bias")
    return _FIXED.get(kind, ())
