"""Step functions that run a frontend in another interpreter, as the steps of a build do."""

from __future__ import annotations

from pathlib import Path

from small_net import source_of

from retarget.facts import CalibrateFacts, Fact
from retarget.protocols import StepRequest
from retarget.remote import RemoteFrontend


def export(request: StepRequest) -> Fact:
    """Export ``weights`` with the function ``factory`` of the file of that role."""
    assert request.python is not None
    options = {"rung": "torchscript"}
    factory = (request.files["factory"], str(request.options["factory"]))
    source = source_of(request.files["weights"], "x=float32[N,4]", factory=factory, options=options)
    with RemoteFrontend(request.python, "pytorch") as frontend:
        exported = frontend.export(source, None, Path(request.out))
        with frontend.reference(source, exported) as runner:
            settings = runner.settings
    return CalibrateFacts(origin="samples", samples=1, tensors=1, notes=(settings,))
