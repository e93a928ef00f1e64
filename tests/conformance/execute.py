"""Run the cases of the suite through a target, each to one of five ends; what crashes does not take the rest along.

``python tests/conformance/execute.py TARGET [CASE...]`` prints the results as JSON lines.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
import suite

from retarget import catalog, graph
from retarget.errors import RetargetError, Unsupported
from retarget.protocols import EmitJob
from retarget.spec import TensorSpec

if TYPE_CHECKING:
    from retarget.protocols import Array

End = Literal["passed", "built", "refused", "wrong", "failed"]
"""``built``: emitted, but this machine cannot execute it. ``refused``: ``Unsupported``. ``failed``: any other error."""


CRASH = "RETARGET_CONFORMANCE_CRASH"
"""Names a case at which the worker crashes: for the test of what happens then."""


class Result(msgspec.Struct, frozen=True):
    case: str
    end: End
    detail: str = ""


def execute(target: str, names: Sequence[str]) -> dict[str, Result]:
    """The result of each case, from worker processes: one at a time, a new one after a crash."""
    waiting = list(names)
    results: dict[str, Result] = {}
    while waiting:
        code = _work_off(target, waiting, results)
        if waiting:
            crashed = waiting.pop(0)
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            results[crashed] = Result(crashed, "failed", f"the process was ended by {how}")
    return results


def _work_off(target: str, waiting: list[str], results: dict[str, Result]) -> int:
    """Take cases off ``waiting`` as a worker ends them; returns its exit code."""
    with tempfile.NamedTemporaryFile("w+", suffix=".json") as file:
        json.dump(waiting, file)
        file.flush()
        command = [sys.executable, "-W", "error::UserWarning", __file__, target, "--cases", file.name]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as worker:
            assert worker.stdout is not None
            for line in worker.stdout:
                result = msgspec.json.decode(line, type=Result)
                results[result.case] = result
                waiting.remove(result.case)
        return worker.returncode


def one(target: str, case: suite.Case) -> Result:
    """Emit, open and compare one case, in this process."""
    model = case.load()
    job = EmitJob(
        precision="fp32",
        inputs=tuple(graph.value_spec(value) for value in model.graph.inputs),
        outputs=tuple(_output(name, array) for name, array in case.expected.items()),
        shapes={},
        options=catalog.target(target).Options(),
    )
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        try:
            facts = catalog.target_emit(target).emit(model, job, out)
            if catalog.target(target).not_executable() is not None:
                return Result(case.name, "built")
            with catalog.target_run(target).open(out, facts, parity=True, threads=1) as runner:
                outputs = runner.run(case.feeds)
        except Unsupported as error:
            # The first line counts the nodes; those after it name them.
            return Result(case.name, "refused", "\n".join(error.message.splitlines()[1:]))
        except RetargetError as error:
            return Result(case.name, "failed", error.message)
    wrong = suite.difference(outputs, case.expected)
    return Result(case.name, "passed") if wrong is None else Result(case.name, "wrong", wrong)


def _output(name: str, array: Array) -> TensorSpec:
    return TensorSpec(name, array.dtype.name, tuple(array.shape))


def main(target: str, names: Sequence[str]) -> None:
    # Native libraries write to stdout as they like, so results go to a copy of it and stdout to stderr.
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    by_name = {case.name: case for case in suite.cases()}
    for name in names:
        if name == os.environ.get(CRASH):
            os.kill(os.getpid(), signal.SIGSEGV)
        results.write(msgspec.json.encode(one(target, by_name[name])).decode() + "\n")
        results.flush()


if __name__ == "__main__":
    _, chosen, *rest = sys.argv
    if rest[:1] == ["--cases"]:
        rest = json.loads(Path(rest[1]).read_text())
    main(chosen, rest or [case.name for case in suite.cases()])
