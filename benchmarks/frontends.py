"""retarget's TensorFlow, Keras and TFLite frontends beside the entry points that tf2onnx and Keras have themselves.

Each reads the same file and writes an ONNX file, in a process of its own, imports included in neither the time nor the
memory. Memory is the peak of anonymous memory above that of the imports. `inputs` counts graph inputs (a captured
constant that became one is an error), `transposes` what retarget's default preset leaves of them, and `SNR` holds the
file, as ONNX Runtime executes it without optimizations, against the framework itself. Ratios are the peer's figure by
retarget's: above 1, retarget is better. `python -m benchmarks.frontends --help` shows the options.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from benchmarks.measure import Cost, cost, in_process
from retarget.compare import snr_db
from retarget.source import Source

if TYPE_CHECKING:
    from retarget.protocols import Array

NETS = ("mobilenet_v2", "resnet50", "efficientnet_b0", "lstm")
KINDS: Mapping[str, str] = {"keras": "model.keras", "tensorflow": "saved_model", "tflite": "model.tflite"}
"""Frontend to what it reads."""
SIDE = 224


# ---- the models


def write(net: str, folder: Path) -> None:
    """Make ``net`` in every format, with weights and statistics that let its outputs vary."""
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    if net == "lstm":
        text = keras.Input((None, 32), name="text")
        hidden = keras.layers.Bidirectional(keras.layers.LSTM(64, return_sequences=True))(text)
        model = keras.Model(text, keras.layers.Dense(10)(keras.layers.GRU(48)(hidden)))
    else:
        make = {
            "mobilenet_v2": keras.applications.MobileNetV2,
            "resnet50": keras.applications.ResNet50,
            "efficientnet_b0": keras.applications.EfficientNetB0,
        }[net]
        model = make(weights=None, classifier_activation=None)
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.moving_mean.assign(rng.normal(0, 0.1, layer.moving_mean.shape))
                layer.moving_variance.assign(rng.uniform(0.5, 1.5, layer.moving_variance.shape))
    model.save(folder / KINDS["keras"])
    model.export(folder / KINDS["tensorflow"], verbose=False)
    if net != "lstm":  # its while loops would be TensorFlow's own operators in a TFLite file
        converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / KINDS["tensorflow"]))
        (folder / KINDS["tflite"]).write_bytes(converter.convert())


def prepared(net: str, root: Path) -> Path:
    """The folder that holds ``net``; made by a process of its own, once."""
    folder = root / "frontends" / net
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.frontends", "--write", net, str(folder)],
            check=True,
            capture_output=True,
        )
        (folder / "done").touch()
    return folder


# ---- the tools, each in its own process


def retarget(frontend: str, path: Path, out: Path) -> None:
    """The frontend as a build calls it: export, and to the normal form."""
    from retarget import catalog, graph

    source = Source(path, (), {}, options=msgspec.to_builtins(catalog.frontend(frontend).Options()))
    with tempfile.TemporaryDirectory() as folder:
        exported = catalog.frontend_export(frontend).export(source, None, Path(folder))
        model = catalog.frontend_load(frontend).load(Path(folder), source, exported)
        graph.save(model, out)


def command_line(option: str) -> Callable[[str, Path, Path], None]:
    """``python -m tf2onnx.convert OPTION FILE``, without its start."""

    def run(_: str, path: Path, out: Path) -> None:
        import tf2onnx.convert

        sys.argv = ["tf2onnx.convert", option, str(path), "--output", str(out), "--opset", "18"]
        tf2onnx.convert.main()

    return run


def from_keras(_: str, path: Path, out: Path) -> None:
    """``tf2onnx.convert.from_keras`` on the loaded model."""
    import keras
    import tf2onnx

    tf2onnx.convert.from_keras(keras.saving.load_model(path), opset=18, output_path=str(out))


def from_function(_: str, path: Path, out: Path) -> None:
    """``tf2onnx.convert.from_function`` on the traced model."""
    import keras
    import tensorflow as tf
    import tf2onnx

    model = keras.saving.load_model(path)
    signature = [tf.TensorSpec(one.shape, one.dtype, name=one.name) for one in model.inputs]
    traced = tf.function(lambda *inputs: model(inputs[0], training=False))
    tf2onnx.convert.from_function(traced, input_signature=signature, opset=18, output_path=str(out))


def keras_export(_: str, path: Path, out: Path) -> None:
    """``model.export(format="onnx")`` of Keras."""
    import keras

    model = keras.saving.load_model(path)
    model(*(keras.ops.zeros([size or 2 for size in one.shape]) for one in model.inputs))  # it must have been called
    model.export(str(out), format="onnx", verbose=False)


TOOLS: Mapping[str, Mapping[str, Callable[[str, Path, Path], None]]] = {
    "keras": {
        "retarget": retarget,
        "tf2onnx from_keras": from_keras,
        "tf2onnx from_function": from_function,
        "keras export": keras_export,
    },
    "tensorflow": {"retarget": retarget, "tf2onnx --saved-model": command_line("--saved-model")},
    "tflite": {"retarget": retarget, "tf2onnx --tflite": command_line("--tflite")},
}
"""Frontend to what can read its files."""


def measure(tool: str, frontend: str, path: Path, out: Path) -> Cost:
    """The cost of one tool, in this process."""
    import keras  # noqa: F401 - the import is not what is measured
    import tensorflow as tf
    import tf2onnx.convert  # noqa: F401

    import retarget.passes.library  # noqa: F401

    tf.config.threading.set_intra_op_parallelism_threads(2)
    with contextlib.redirect_stdout(io.StringIO()):
        return cost(lambda: TOOLS[frontend][tool](frontend, path, out))


# ---- what came out


@dataclass(frozen=True)
class Found:
    """Of an ONNX file."""

    inputs: int
    transposes: int
    snr: float


def examine(frontend: str, path: Path, out: Path) -> Found:
    """Against the framework itself, at a batch of 2."""
    from retarget import catalog, graph
    from retarget.convert.normal_form import normal_form
    from retarget.passes import presets
    from retarget.session import Session

    model = normal_form(graph.load(out), str(out))
    source = Source(path, (), {}, options=msgspec.to_builtins(catalog.frontend(frontend).Options()))
    with tempfile.TemporaryDirectory() as folder:
        exported = catalog.frontend_export(frontend).export(source, None, Path(folder))
    rng = np.random.default_rng(1)
    sizes = {symbol: 2 if axis == 0 else 7 for spec in exported.inputs for axis, symbol in enumerate(spec.shape)}
    feed: Array = rng.standard_normal(
        [size if isinstance(size, int) else sizes[size] for size in exported.inputs[0].shape]
    ).astype(np.float32)
    with catalog.frontend_export(frontend).reference(source, exported) as runner:
        expected = runner.run({exported.inputs[0].name: feed})[exported.outputs[0]]
    with Session(model) as session:
        actual = session.run({session.input_names[0]: feed})[session.output_names[0]]
    inputs = len(model.graph.inputs)
    for one in presets.build("default", {}):
        model = one.run(model).model
    left = sum(node.op_type == "Transpose" for node in graph.all_nodes(model))
    return Found(inputs, left, snr_db(expected, actual))


def report(net: str, frontend: str, root: Path, timeout: float) -> None:
    """One table: every tool that reads the file."""
    path = prepared(net, root) / KINDS[frontend]
    if not path.exists():
        return
    print(f"\n{net} as {path.name}")
    print(f"{'':24}{'seconds':>9}{'ratio':>7}{'peak MB':>9}{'ratio':>7}{'inputs':>8}{'transposes':>12}{'SNR':>7}")
    own: Cost | None = None
    for tool in TOOLS[frontend]:
        with tempfile.TemporaryDirectory(dir=root) as folder:
            out = Path(folder) / "model.onnx"
            took = in_process("benchmarks.frontends", ["--run", tool, frontend, str(path), str(out)], timeout)
            own = own or took
            if took.error:
                print(f"{tool:24}  failed: {took.error}")
                continue
            line = f"{tool:24}{took.seconds:>9.2f}{took.seconds / (own.seconds or 1):>7.2f}"
            line += f"{took.peak_mb:>9.0f}{took.peak_mb / (own.peak_mb or 1):>7.2f}"
            try:
                found = examine(frontend, path, out)
            except Exception as error:  # noqa: BLE001 - what a peer wrote may break anything
                print(f"{line}  not usable: {str(error).splitlines()[0][:60]}")
                continue
            print(f"{line}{found.inputs:>8}{found.transposes:>12}{found.snr:>7.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.frontends", description=__doc__)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=["mobilenet_v2", "resnet50", "lstm"])
    parser.add_argument("--frontends", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--folder", type=Path, default=Path("build/benchmarks"), help="where models are kept")
    parser.add_argument("--timeout", type=float, default=600, help="seconds that one conversion may take")
    parser.add_argument("--run", nargs=4, metavar=("TOOL", "FRONTEND", "SOURCE", "OUT"), help=argparse.SUPPRESS)
    parser.add_argument("--write", nargs=2, metavar=("NET", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    if given.write:
        write(given.write[0], Path(given.write[1]))
    elif given.run:
        tool, frontend, source, out = given.run
        sys.stdout.write(msgspec.json.encode(measure(tool, frontend, Path(source), Path(out))).decode() + "\n")
    else:
        given.folder.mkdir(parents=True, exist_ok=True)
        for net in given.nets:
            for frontend in given.frontends:
                report(net, frontend, given.folder, given.timeout)


if __name__ == "__main__":
    main()
