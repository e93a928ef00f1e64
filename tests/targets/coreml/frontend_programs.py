"""Writes what coremltools' own PyTorch frontend makes of small modules, in a process of its own: it needs PyTorch."""

from __future__ import annotations

import gc
import json
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from frontend_cases import Case, cases, noise
from torch import nn

# What coremltools would import for its other frontends is hidden from it.
sys.modules.update(dict.fromkeys(("libsvm", "sklearn", "tensorflow", "transformers", "xgboost")))  # type: ignore[arg-type]
warnings.simplefilter("ignore")
logging.getLogger("coremltools").setLevel(logging.ERROR)

import coremltools as ct  # noqa: E402 - with less to import
import coremltools.optimize.coreml as cto  # noqa: E402

QUANTIZED: dict[str, tuple[int, Callable[[ct.models.MLModel], ct.models.MLModel]]] = {
    "int8": (16, lambda m: cto.linear_quantize_weights(m, _config(cto.OpLinearQuantizerConfig("linear")))),
    "int8 symmetric": (
        16,
        lambda m: cto.linear_quantize_weights(m, _config(cto.OpLinearQuantizerConfig("linear_symmetric"))),
    ),
    "int8 of blocks": (
        18,
        lambda m: cto.linear_quantize_weights(
            m, _config(cto.OpLinearQuantizerConfig(granularity="per_block", block_size=4))
        ),
    ),
    "int4 of blocks": (
        18,
        lambda m: cto.linear_quantize_weights(
            m,
            _config(cto.OpLinearQuantizerConfig("linear", dtype="int4", granularity="per_block", block_size=8)),
        ),
    ),
    "6 bits": (16, lambda m: cto.palettize_weights(m, _config(cto.OpPalettizerConfig("uniform", nbits=6)))),
    "4 bits of groups": (
        18,
        lambda m: cto.palettize_weights(
            m,
            _config(cto.OpPalettizerConfig("uniform", nbits=4, granularity="per_grouped_channel", group_size=4)),
        ),
    ),
    "pruned": (16, lambda m: cto.prune_weights(m, _config(cto.OpMagnitudePrunerConfig(target_sparsity=0.6)))),
    "pruned, 4 bits": (
        18,
        lambda m: cto.palettize_weights(
            cto.prune_weights(m, _config(cto.OpMagnitudePrunerConfig(target_sparsity=0.6))),
            _config(cto.OpPalettizerConfig("uniform", nbits=4)),
            joint_compression=True,
        ),
    ),
    "pruned, int8": (
        18,
        lambda m: cto.linear_quantize_weights(
            cto.prune_weights(m, _config(cto.OpMagnitudePrunerConfig(target_sparsity=0.6))),
            _config(cto.OpLinearQuantizerConfig("linear_symmetric")),
            joint_compression=True,
        ),
    ),
}


def _config(of_op: Any) -> cto.OptimizationConfig:
    of_op.weight_threshold = 0  # What is small is compressed, too.
    return cto.OptimizationConfig(of_op)


def converted(case: Case, target: int, half: bool) -> ct.models.MLModel:
    options: dict[str, Any] = {} if case.script else {"example_inputs": case.inputs, "check_trace": False}
    capture: Any = torch.jit.script if case.script else torch.jit.trace
    return ct.convert(
        capture(case.module, **options),
        inputs=[
            ct.TensorType(f"x{index}", each.shape, dtype=np.int32 if each.dtype == torch.int32 else np.float32)
            for index, each in enumerate(case.inputs)
        ],
        minimum_deployment_target=getattr(ct.target, f"iOS{target}"),
        compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
        skip_model_load=True,
    )


def main(out: Path) -> None:
    """``<case>/<name>.mlpackage`` and ``<case>/reference.npz``; ``failed.json``: what could not be written, and why."""
    gc.freeze()  # coremltools collects garbage after each conversion: not among all that was imported
    torch.set_num_threads(1)
    failed: dict[str, str] = {}
    for number, (name, case) in enumerate(cases().items()):
        with torch.no_grad():
            given = case.module(*case.inputs)
        folder = out / name
        folder.mkdir()
        values: dict[str, Any] = {f"x{index}": each.numpy() for index, each in enumerate(case.inputs)}
        outputs = given if isinstance(given, tuple) else (given,)
        values |= {f"y{index}": each.numpy() for index, each in enumerate(outputs)}
        np.savez(folder / "reference.npz", **values)
        for offset, half in ((0, False), (2, True)):
            target = case.target or 15 + (number + offset) % 4
            try:
                made = converted(case, target, half)
            except Exception as error:  # noqa: BLE001 - whatever the frontend cannot do is listed in the test
                failed[f"{name}, iOS{target}"] = f"{type(error).__name__}: {error}"
            else:
                made.save(str(folder / f"{'fp16' if half else 'fp32'} iOS{target}.mlpackage"))
    module = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8)).eval()
    case = Case(module, (noise(2, 8, 4, 4),))
    for name, (target, compress) in QUANTIZED.items():
        folder = out / "compressed" / name
        folder.mkdir(parents=True)
        made = compress(converted(case, target, half=target == 18))
        made.save(str(folder / "compressed.mlpackage"))
        cto.decompress_weights(made).save(str(folder / "plain.mlpackage"))
        np.savez(folder / "reference.npz", x0=case.inputs[0].numpy(), y0=module(*case.inputs).detach().numpy())
    (out / "failed.json").write_text(json.dumps(failed, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
