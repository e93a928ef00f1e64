"""The nets that Caffe is known for, as their deploy prototxts have them, narrower and with random weights.

``NETS`` maps a name to a function that writes it. Weights are scaled by what each unit sums up, so that every layer's
output is of the order of 1 and varies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import caffe_files
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass
class Writer:
    """A net under construction. Methods take the blob to read and return the blob that they make."""

    name: str
    size: tuple[int, int, int]
    """Channels, height and width of the input ``data``."""
    batch: int = 1
    seed: int = 0
    text: list[str] = field(default_factory=list)
    saved: list[caffe_files.Saved] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Blob to its shape without the batch."""

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self.shapes["data"] = self.size

    @property
    def prototxt(self) -> str:
        return f'name: "{self.name}"\n{caffe_files.inputs(data=(self.batch, *self.size))}{"".join(self.text)}'

    def feeds(self) -> dict[str, Floats]:
        return {"data": self.random.normal(size=(self.batch, *self.size)).astype(np.float32)}

    def layer(
        self, name: str, kind: str, bottoms: str | Sequence[str], shape: tuple[int, ...], text: str = "", top: str = ""
    ) -> str:
        self.text.append(caffe_files.layer(name, kind, bottoms, top or name, text))
        self.shapes[top or name] = shape
        return top or name

    def _save(self, name: str, kind: str, fan: int, *shapes: tuple[int, ...]) -> None:
        scales = [np.sqrt(2 / fan), *[0.1] * (len(shapes) - 1)]
        blobs = [self.random.normal(0, scale, shape) for scale, shape in zip(scales, shapes, strict=True)]
        self.saved.append((name, kind, blobs))

    def conv(
        self, name: str, bottom: str, outputs: int, kernel: int, *, pad: int = 0, stride: int = 1, group: int = 1,
        dilation: int = 1, bias: bool = True,
    ) -> str:  # fmt: skip
        channels, *sides = self.shapes[bottom]
        text = f"num_output: {outputs} kernel_size: {kernel} pad: {pad} stride: {stride} group: {group}"
        text += f" dilation: {dilation}" if dilation > 1 else ""
        text += "" if bias else " bias_term: false"
        weight = (outputs, channels // group, kernel, kernel)
        self._save(name, "Convolution", channels // group * kernel**2, weight, *([(outputs,)] if bias else []))
        extent = dilation * (kernel - 1) + 1
        shape = (outputs, *((side + 2 * pad - extent) // stride + 1 for side in sides))
        return self.layer(name, "Convolution", bottom, shape, f"convolution_param {{ {text} }}")

    def deconv(self, name: str, bottom: str, kernel: int, stride: int) -> str:
        """Each channel enlarged by itself."""
        channels, *sides = self.shapes[bottom]
        self._save(name, "Deconvolution", kernel**2, (channels, 1, kernel, kernel))
        text = f"num_output: {channels} group: {channels} kernel_size: {kernel} stride: {stride} bias_term: false"
        shape = (channels, *(stride * (side - 1) + kernel for side in sides))
        return self.layer(name, "Deconvolution", bottom, shape, f"convolution_param {{ {text} }}")

    def dense(self, name: str, bottom: str, outputs: int) -> str:
        features = int(np.prod(self.shapes[bottom]))
        self._save(name, "InnerProduct", features, (outputs, features), (outputs,))
        return self.layer(name, "InnerProduct", bottom, (outputs,), f"inner_product_param {{ num_output: {outputs} }}")

    def pool(self, name: str, bottom: str, kind: str, kernel: int, stride: int = 1, pad: int = 0) -> str:
        channels, *sides = self.shapes[bottom]
        shape = (channels, *(-(-(side + 2 * pad - kernel) // stride) + 1 for side in sides))
        text = f"pool: {kind} kernel_size: {kernel} stride: {stride} pad: {pad}"
        return self.layer(name, "Pooling", bottom, shape, f"pooling_param {{ {text} }}")

    def same(self, name: str, kind: str, bottom: str, text: str = "", *, inplace: bool = False) -> str:
        """A layer that keeps the shape."""
        return self.layer(name, kind, bottom, self.shapes[bottom], text, bottom if inplace else "")

    def relu(self, bottom: str) -> str:
        return self.same(f"relu_{bottom}", "ReLU", bottom, inplace=True)

    def norm(self, bottom: str, gain: float = 1.0) -> str:
        """BatchNorm and Scale in place, as residual nets have them."""
        channels = self.shapes[bottom][0]
        mean, variance = self.random.normal(0, 0.1, channels), self.random.uniform(0.5, 2, channels)
        gains, offset = self.random.uniform(0.5, 1.5, channels) * gain, self.random.normal(0, 0.1, channels)
        self.saved.append((f"bn_{bottom}", "BatchNorm", [mean * 2, variance * 2, np.array([2.0])]))
        self.saved.append((f"scale_{bottom}", "Scale", [gains, offset]))
        self.same(f"bn_{bottom}", "BatchNorm", bottom, "batch_norm_param { use_global_stats: true }", inplace=True)
        return self.same(f"scale_{bottom}", "Scale", bottom, "scale_param { bias_term: true }", inplace=True)

    def concat(self, name: str, bottoms: Sequence[str]) -> str:
        first = self.shapes[bottoms[0]]
        shape = (sum(self.shapes[bottom][0] for bottom in bottoms), *first[1:])
        return self.layer(name, "Concat", bottoms, shape)

    def add(self, name: str, *bottoms: str) -> str:
        return self.layer(name, "Eltwise", bottoms, self.shapes[bottoms[0]], "eltwise_param { operation: SUM }")


def lenet() -> Writer:
    net = Writer("LeNet", (1, 28, 28), batch=2)
    blob = net.pool("pool1", net.conv("conv1", "data", 20, 5), "MAX", 2, 2)
    blob = net.pool("pool2", net.conv("conv2", blob, 50, 5), "MAX", 2, 2)
    net.same("prob", "Softmax", net.dense("ip2", net.relu(net.dense("ip1", blob, 500)), 10))
    return net


def alexnet() -> Writer:
    net = Writer("AlexNet", (3, 99, 99), batch=2)
    lrn = "lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }"
    blob = net.same("norm1", "LRN", net.relu(net.conv("conv1", "data", 24, 11, stride=4)), lrn)
    blob = net.pool("pool1", blob, "MAX", 3, 2)
    blob = net.same("norm2", "LRN", net.relu(net.conv("conv2", blob, 64, 5, pad=2, group=2)), lrn)
    blob = net.pool("pool2", blob, "MAX", 3, 2)
    blob = net.relu(net.conv("conv3", blob, 96, 3, pad=1))
    blob = net.relu(net.conv("conv4", blob, 96, 3, pad=1, group=2))
    blob = net.pool("pool5", net.relu(net.conv("conv5", blob, 64, 3, pad=1, group=2)), "MAX", 3, 2)
    for name in ("fc6", "fc7"):
        blob = net.relu(net.dense(name, blob, 256))
        net.same(f"drop_{name}", "Dropout", blob, "dropout_param { dropout_ratio: 0.5 }", inplace=True)
    net.same("prob", "Softmax", net.dense("fc8", blob, 100))
    return net


def googlenet() -> Writer:
    net = Writer("GoogLeNet", (3, 96, 96))

    def conv(name: str, bottom: str, outputs: int, kernel: int, *, pad: int = 0, stride: int = 1) -> str:
        return net.relu(net.conv(name, bottom, outputs, kernel, pad=pad, stride=stride))

    lrn = "lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }"
    blob = net.pool("pool1/3x3_s2", conv("conv1/7x7_s2", "data", 16, 7, pad=3, stride=2), "MAX", 3, 2)
    blob = conv("conv2/3x3_reduce", net.same("pool1/norm1", "LRN", blob, lrn), 16, 1)
    blob = net.same("conv2/norm2", "LRN", conv("conv2/3x3", blob, 48, 3, pad=1), lrn)
    blob = net.pool("pool2/3x3_s2", blob, "MAX", 3, 2)
    for stage in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        if stage in ("4a", "5a"):
            blob = net.pool(f"pool{stage[0]}/3x3_s2", blob, "MAX", 3, 2)
        name = f"inception_{stage}"
        branches = [
            conv(f"{name}/1x1", blob, 16, 1),
            conv(f"{name}/3x3", conv(f"{name}/3x3_reduce", blob, 12, 1), 24, 3, pad=1),
            conv(f"{name}/5x5", conv(f"{name}/5x5_reduce", blob, 4, 1), 8, 5, pad=2),
            conv(f"{name}/pool_proj", net.pool(f"{name}/pool", blob, "MAX", 3, 1, 1), 8, 1),
        ]
        blob = net.concat(f"{name}/output", branches)
    blob = net.pool("pool5/7x7_s1", blob, "AVE", net.shapes[blob][1])
    net.same("prob", "Softmax", net.dense("loss3/classifier", net.same("drop", "Dropout", blob, inplace=True), 50))
    return net


def resnet50() -> Writer:
    net = Writer("ResNet-50", (3, 64, 64), batch=2)

    def conv(name: str, bottom: str, outputs: int, kernel: int, *, pad: int = 0, stride: int = 1) -> str:
        return net.norm(net.conv(name, bottom, outputs, kernel, pad=pad, stride=stride, bias=False))

    blob = net.pool("pool1", net.relu(conv("conv1", "data", 8, 7, pad=3, stride=2)), "MAX", 3, 2)
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 8 * 2**stage
        for block in range(blocks):
            name = f"res{stage + 2}{'abcdef'[block]}"
            stride = 2 if stage and not block else 1
            inner = net.relu(conv(f"{name}_branch2a", blob, width, 1, stride=stride))
            inner = net.relu(conv(f"{name}_branch2b", inner, width, 3, pad=1))
            inner = net.norm(net.conv(f"{name}_branch2c", inner, 4 * width, 1, bias=False), gain=0.2)
            short = blob if block else conv(f"{name}_branch1", blob, 4 * width, 1, stride=stride)
            blob = net.relu(net.add(name, short, inner))
    blob = net.pool("pool5", blob, "AVE", net.shapes[blob][1])
    net.same("prob", "Softmax", net.dense("fc1000", blob, 50))
    return net


def squeezenet() -> Writer:
    net = Writer("SqueezeNet", (3, 67, 67))
    blob = net.pool("pool1", net.relu(net.conv("conv1", "data", 32, 3, stride=2)), "MAX", 3, 2)
    for index in range(2, 10):
        if index in (4, 6):
            blob = net.pool(f"pool{index - 1}", blob, "MAX", 3, 2)
        name, width = f"fire{index}", 8 * (index // 2)
        squeezed = net.relu(net.conv(f"{name}/squeeze1x1", blob, width // 2, 1))
        sides = [
            net.relu(net.conv(f"{name}/expand1x1", squeezed, 2 * width, 1)),
            net.relu(net.conv(f"{name}/expand3x3", squeezed, 2 * width, 3, pad=1)),
        ]
        blob = net.concat(f"{name}/concat", sides)
    blob = net.relu(net.conv("conv10", net.same("drop9", "Dropout", blob, inplace=True), 50, 1))
    blob = net.layer("pool10", "Pooling", blob, (50, 1, 1), "pooling_param { pool: AVE global_pooling: true }")
    net.same("prob", "Softmax", blob)
    return net


def fcn() -> Writer:
    """FCN-8s: padded at its first layer, enlarged by Deconvolution, cropped to what it is added to."""
    net = Writer("FCN-8s", (3, 40, 56))
    blob, kept = "data", []
    for stage in range(5):
        pad = 20 if stage == 0 else 1
        blob = net.relu(net.conv(f"conv{stage + 1}", blob, 8 * (stage + 1), 3, pad=pad))
        blob = net.pool(f"pool{stage + 1}", blob, "MAX", 2, 2)
        kept.append(blob)
    blob = net.same("drop6", "Dropout", net.relu(net.conv("fc6", blob, 32, 3)), inplace=True)
    blob = net.deconv("upscore2", net.conv("score_fr", blob, 5, 1), 4, 2)
    for name, skip in (("pool4", kept[3]), ("pool3", kept[2])):
        score = net.conv(f"score_{name}", skip, 5, 1)
        rows, columns = ((net.shapes[score][axis] - net.shapes[blob][axis]) // 2 for axis in (1, 2))
        crop = f"crop_param {{ axis: 2 offset: {rows} offset: {columns} }}"
        cropped = net.layer(f"score_{name}c", "Crop", (score, blob), net.shapes[blob], crop)
        blob = net.add(f"fuse_{name}", blob, cropped)
        blob = net.deconv(f"upscore_{name}", blob, 4 if name == "pool4" else 16, 2 if name == "pool4" else 8)
    net.layer("score", "Crop", (blob, "data"), (5, 40, 56), "crop_param { axis: 2 offset: 22 }")
    return net


def _heads(net: Writer, sources: Sequence[tuple[str, float]], classes: int) -> None:
    """SSD's end: locations, confidences and prior boxes of each source, joined and decoded."""
    parts: dict[str, list[str]] = {"loc": [], "conf": [], "prior": []}
    for blob, size in sources:
        sides = net.shapes[blob][1:]
        for kind, outputs in (("loc", 4 * 3), ("conf", classes * 3)):
            name = f"{blob}_mbox_{kind}"
            net.conv(name, blob, outputs, 3, pad=1)
            order = "permute_param { order: 0 order: 2 order: 3 order: 1 }"
            turned = net.layer(f"{name}_perm", "Permute", name, (*sides, outputs), order)
            flat = (int(np.prod(sides)) * outputs,)
            parts[kind].append(net.layer(f"{name}_flat", "Flatten", turned, flat, "flatten_param { axis: 1 }"))
        box = f"min_size: {size} aspect_ratio: 2 flip: true clip: false"
        box += " variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2"
        prior = f"prior_box_param {{ {box} }}"
        parts["prior"].append(net.layer(f"{blob}_mbox_priorbox", "PriorBox", (blob, "data"), (), prior))
    for kind, axis in (("loc", 1), ("conf", 1), ("prior", 2)):
        net.layer(f"mbox_{kind}", "Concat", parts[kind], (), f"concat_param {{ axis: {axis} }}")
    shape = f"reshape_param {{ shape {{ dim: 0 dim: -1 dim: {classes} }} }}"
    net.layer("mbox_conf_reshape", "Reshape", "mbox_conf", (), shape)
    net.layer("mbox_conf_softmax", "Softmax", "mbox_conf_reshape", (), "softmax_param { axis: 2 }")
    net.layer("mbox_conf_flatten", "Flatten", "mbox_conf_softmax", (), "flatten_param { axis: 1 }")
    decoded = (
        f"num_classes: {classes} share_location: true background_label_id: 0 code_type: CENTER_SIZE keep_top_k: 50"
        " confidence_threshold: 0.3 nms_param { nms_threshold: 0.45 top_k: 100 }"
    )
    bottoms = ("mbox_loc", "mbox_conf_flatten", "mbox_prior")
    net.layer("detection_out", "DetectionOutput", bottoms, (), f"detection_output_param {{ {decoded} }}")


def mobilenet_ssd() -> Writer:
    net = Writer("MobileNet-SSD", (3, 96, 96))
    blob = net.relu(net.norm(net.conv("conv0", "data", 8, 3, pad=1, stride=2, bias=False)))
    kept = {}
    for index, (outputs, stride) in enumerate(((16, 1), (32, 2), (32, 1), (48, 2), (48, 1), (64, 2)), start=1):
        channels = net.shapes[blob][0]
        blob = net.conv(f"conv{index}/dw", blob, channels, 3, pad=1, stride=stride, group=channels, bias=False)
        blob = net.relu(net.norm(net.conv(f"conv{index}", net.relu(net.norm(blob)), outputs, 1, bias=False)))
        kept[index] = blob
    extra = net.relu(net.norm(net.conv("conv14_1", blob, 16, 1, bias=False)))
    extra = net.relu(net.norm(net.conv("conv14_2", extra, 32, 3, pad=1, stride=2, bias=False)))
    _heads(net, [(kept[5], 20.0), (kept[6], 40.0), (extra, 70.0)], classes=4)
    return net


def vgg_ssd() -> Writer:
    """SSD on VGG: a dilated layer with much padding, Normalize on the first source, a pooling that does not shrink."""
    net = Writer("VGG-SSD", (3, 72, 72))
    blob = "data"
    for stage, outputs in enumerate((8, 16, 24), start=1):
        blob = net.relu(net.conv(f"conv{stage}_1", blob, outputs, 3, pad=1))
        blob = net.relu(net.conv(f"conv{stage}_2", blob, outputs, 3, pad=1))
        if stage < 3:
            blob = net.pool(f"pool{stage}", blob, "MAX", 2, 2)
    net.saved.append(("conv3_norm", "Normalize", [net.random.uniform(5, 20, net.shapes[blob][0])]))
    first = net.same("conv3_norm", "Normalize", blob, "norm_param { across_spatial: false channel_shared: false }")
    blob = net.pool("pool4", net.pool("pool3", blob, "MAX", 2, 2), "MAX", 3, 1, 1)
    blob = net.relu(net.conv("fc6", blob, 48, 3, pad=6, dilation=6))
    second = net.relu(net.conv("fc7", blob, 48, 1))
    blob = net.relu(net.conv("conv6_2", net.relu(net.conv("conv6_1", second, 16, 1)), 32, 3, pad=1, stride=2))
    _heads(net, [(first, 15.0), (second, 30.0), (blob, 50.0)], classes=3)
    return net


NETS: dict[str, Callable[[], Writer]] = {
    "lenet": lenet,
    "alexnet": alexnet,
    "googlenet": googlenet,
    "resnet50": resnet50,
    "squeezenet": squeezenet,
    "fcn": fcn,
    "mobilenet_ssd": mobilenet_ssd,
    "vgg_ssd": vgg_ssd,
}
