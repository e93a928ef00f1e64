"""The inputs of the package as Core ML is to show them: sizes that are open, and which they may be."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from retarget.protocols import EmitJob
from retarget.spec import TensorSpec
from retarget.targets.coreml import Options
from retarget.targets.coreml.library import ct

_TYPES = {"float16": np.float16, "float32": np.float32, "float64": np.float32}


def input_types(job: EmitJob, names: Mapping[str, str], sizes: Mapping[str, int]) -> list[ct.TensorType]:
    """One for each input, by its name in the program. ``sizes``: the symbolic dimensions that are fixed."""
    return [
        ct.TensorType(name=names[spec.name], shape=_shape(spec, job, sizes), dtype=_TYPES.get(spec.dtype, np.int32))
        for spec in job.inputs
    ]


def _shape(spec: TensorSpec, job: EmitJob, sizes: Mapping[str, int]) -> object:
    assert isinstance(job.options, Options)
    dims = [dim if isinstance(dim, int) else sizes.get(dim, dim) for dim in spec.shape] or [1]
    if not any(isinstance(dim, str) for dim in dims):
        return ct.Shape(dims)
    if job.options.flexible_shapes == "enumerated":
        shapes = [
            tuple(getattr(job.shapes[dim], which) if isinstance(dim, str) else dim for dim in dims)
            for which in ("opt", "min", "max")
        ]
        return ct.EnumeratedShapes([ct.Shape(shape) for shape in dict.fromkeys(shapes)], default=shapes[0])
    return ct.Shape([_range(dim, job) if isinstance(dim, str) else dim for dim in dims])


def _range(symbol: str, job: EmitJob) -> ct.RangeDim:
    extent = job.shapes[symbol]
    return ct.RangeDim(lower_bound=extent.min, upper_bound=extent.max, default=extent.opt)
