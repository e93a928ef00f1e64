"""Write ``model.tflite`` and, beside it, which of its tensors is which value of the ONNX graph."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from retarget import __version__
from retarget.errors import RetargetError, unsupported
from retarget.facts import EmitFacts, IoEntry, Precision, one_size
from retarget.interface import IMAGE_AXES, to_channels_last
from retarget.protocols import EmitJob
from retarget.spec import TensorSpec, batch_symbol
from retarget.targets import legal, tensor_map
from retarget.targets.tflite import Options, schemes
from retarget.targets.tflite.arrangement import arrange
from retarget.targets.tflite.custom import CUSTOM
from retarget.targets.tflite.executed import executed
from retarget.targets.tflite.layout import Layout, Wish
from retarget.targets.tflite.lowering import Lowering
from retarget.targets.tflite.ops import OPS
from retarget.targets.tflite.program import Program, Tensor
from retarget.targets.tflite.resizable import opened
from retarget.targets.tflite.sharing import separated
from retarget.targets.tflite.write import write, write_map

FILE = "model.tflite"

MOST_NAMED = 5
"""Of nodes that a note is about."""

_BRING = "the option `custom_ops` names operators for which your own runtime has kernels"


def check(model: ir.Model, job: EmitJob) -> list[legal.Refusal]:
    """Every node that cannot be written, each with its reason."""
    lowered = _Lower(model, job)
    lowered(lowered.sizes)
    return lowered.refusals


def emit(model: ir.Model, job: EmitJob, out: Path) -> EmitFacts:
    """``out/model.tflite`` and ``out/tensors.json``."""
    lower = _Lower(model, job)
    lower(lower.sizes)
    if lower.refusals:
        raise unsupported("tflite", lower.refusals, _BRING)
    widened = lower.widened  # of other sizes, which may be refused, nothing is said
    made = opened(lower, job.shapes, batch_symbol(job.inputs, job.outputs))
    write(made.program, out / FILE, description=f"retarget {__version__}")
    write_map(made.program, out / tensor_map.FILE)
    return _facts(job, out / FILE, made.program, made.fixed, widened)


@dataclass
class _Lower:
    """The model's program at any sizes of its symbolic dimensions."""

    model: ir.Model
    job: EmitJob
    refusals: list[legal.Refusal] = field(default_factory=list)
    widened: dict[str, str] = field(default_factory=dict)
    halves: dict[Hashable, bool] = field(default_factory=dict)
    """What float16 can hold of the weights, which are read for that once."""

    def __post_init__(self) -> None:
        self.sizes = {symbol: extent.opt for symbol, extent in self.job.shapes.items()}
        self.border = dict(_border(self.job))
        # Of all sizes the same: a layout is chosen once.
        self.arrangement = arrange(self.model.graph, _wish, self.sizes, self.border)

    def __call__(self, sizes: Mapping[str, int]) -> Program:
        assert isinstance(self.job.options, Options)
        allowed = dict.fromkeys(self.job.options.custom_ops, CUSTOM)
        lowering = Lowering(
            self.model, self.job, sizes, OPS, self.arrangement, self.border, allowed, halves=self.halves
        )
        program = separated(lowering.run())
        self.refusals, self.widened = lowering.refusals, lowering.widened
        return program


def _wish(node: ir.Node) -> Wish | None:
    """What the operator can do; None where there is no such operator."""
    op = OPS.get(legal.operator(node))
    return None if op is None else op.wish(node)


def _border(job: EmitJob) -> Mapping[str, Layout]:
    """Inputs and outputs that the file has in another order of axes than the model.

    Raises ``RetargetError`` where channels that stand last are to stand first, which is the model's own ``io_layout``.
    """
    assert isinstance(job.options, Options)
    wanted, border = job.options.io_layout, {}
    for spec in (*job.inputs, *job.outputs):
        if wanted is None or len(spec.shape) != IMAGE_AXES or job.layouts.get(spec.name, "nchw") == wanted:
            continue
        if wanted == "nchw":
            raise RetargetError(
                f"tflite: io_layout is nchw, and the channels of '{spec.name}' stand last in the model",
                "write `io_layout: nchw` in `model`, or --io-layout nchw",
            )
        border[spec.name] = Layout.LAST
    return border


def _facts(
    job: EmitJob, path: Path, program: Program, fixed: Mapping[str, str], widened: Mapping[str, str]
) -> EmitFacts:
    """``fixed``: each dimension that has one size in the file → why. ``widened``: as the `Lowering` has them."""
    assert isinstance(job.options, Options)
    done = executed(path, job.precision)
    inputs = tuple(_entry(spec, program.inputs[spec.name]) for spec in job.inputs)
    outputs = tuple(_entry(spec, program.outputs[spec.name]) for spec in job.outputs)
    sizes = {symbol: job.shapes[symbol].opt for symbol in fixed}
    notes = [
        one_size(symbol, sizes[symbol], "file", reason)
        for symbol, reason in fixed.items()
        if job.shapes[symbol].min < job.shapes[symbol].max
    ]
    free = [symbol for symbol, extent in job.shapes.items() if extent.min < extent.max and symbol not in fixed]
    if free:
        notes.append(
            f"{', '.join(free)} may have any size, the largest first: XNNPACK of LiteRT 2.3 can compute wrong values in"
            " an interpreter that is resized beyond the sizes of its first call"
        )
    custom = sorted({operator.custom for operator in program.operators if operator.custom})
    if custom:
        notes.append(f"the runtime must bring custom operators: {', '.join(custom)}")
    meant = schemes.get(job.precision)
    integers = () if meant is None else (*meant.weighted, *meant.arithmetic, *meant.moving)
    named = [f"{operator} '{name}'" for name, operator in widened.items() if operator in integers]
    if named:
        rest = f" and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
        notes.append(
            "quantized, but computed in float32, as no kernel of integers is right for them: "
            f"{', '.join(named[:MOST_NAMED])}{rest}"
        )
    return EmitFacts(
        target="tflite",
        variant_precision=job.precision,
        inputs=inputs,
        outputs=outputs,
        precision=Precision(
            weights=done.weights,
            activations=done.activations,
            io=done.io,
            low_precision_share=done.low_precision_share,
        ),
        sizes=sizes,
        settings={"kernels": job.options.kernels},
        notes=tuple(notes),
        not_executable=f"no kernels for its custom operators are here: {', '.join(custom)}" if custom else None,
    )


def _entry(spec: TensorSpec, tensor: Tensor) -> IoEntry:
    rank = len(spec.shape)
    quantization = tensor.quantization
    return IoEntry(
        name=spec.name,
        artifact_name=spec.name,
        spec=spec,
        artifact_dtype=tensor.dtype.name,
        permutation=to_channels_last(rank) if tensor.layout == "last" else None,
        scale=None if quantization is None else quantization.scales[0],
        zero_point=None if quantization is None else quantization.zero_points[0],
    )
