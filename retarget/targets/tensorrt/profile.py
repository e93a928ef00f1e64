"""The optimization profile: the sizes that an engine takes, from the recipe's ``shapes``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retarget.errors import RetargetError
from retarget.protocols import EmitJob
from retarget.spec import DimRange, TensorSpec
from retarget.targets.tensorrt.network import Parsed


def ranges(job: EmitJob) -> Mapping[str, DimRange]:
    """The range of every symbolic dimension of the inputs. Raises ``RetargetError`` if one has none."""
    for spec in job.inputs:
        for symbol in spec.symbols:
            if symbol not in job.shapes:
                raise RetargetError(
                    f"input '{spec.name}': dimension {symbol} has no range", f"give it with --shape {symbol}=1:8:32"
                )
    return job.shapes


def opt_sizes(job: EmitJob) -> dict[str, int]:
    """Each symbolic dimension at its most likely size."""
    return {symbol: size.opt for symbol, size in ranges(job).items()}


def add_profile(network: Parsed, config: Any, job: EmitJob) -> tuple[str, ...]:
    """Add the one profile to ``config`` where an input is dynamic. Returns a sentence for each such input."""
    specs = {spec.name: spec for spec in job.inputs}
    sizes = ranges(job)
    profile = network.builder.create_optimization_profile()
    notes = []
    for name, tensor in network.inputs():
        if -1 in tuple(tensor.shape):
            spec = specs[name]
            profile.set_shape(tensor.name, *bounds(spec, sizes))
            said = ", ".join(f"{symbol} from {sizes[symbol].min} to {sizes[symbol].max}" for symbol in spec.symbols)
            best = ", ".join(f"{symbol} = {sizes[symbol].opt}" for symbol in spec.symbols)
            notes.append(f"Input {name} takes {said or 'one shape'}, and is tuned for {best or spec.type}.")
    if notes:
        config.add_optimization_profile(profile)
    return tuple(notes)


def bounds(spec: TensorSpec, sizes: Mapping[str, DimRange]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The smallest, most likely and largest shape of ``spec``."""
    return (
        spec.at({symbol: size.min for symbol, size in sizes.items()}),
        spec.at({symbol: size.opt for symbol, size in sizes.items()}),
        spec.at({symbol: size.max for symbol, size in sizes.items()}),
    )
