"""A build as the command line would do it, for tests that send signals: ``python -m toolchains.build STORE PIDS``."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

from retarget import engine
from retarget.store import Store
from toolchains.steps import function_of, step


def main() -> int:
    store, pids = Store(Path(sys.argv[1])), sys.argv[2]
    first = step("write", text="first")
    steps = [first] + [step("hang", {"model": first}, id=name, toolchain=name, pids=pids, name=name) for name in "ab"]
    steps.append(step("write", {"model": steps[-1]}, id="never", text="last"))
    outcomes = engine.run(
        steps, store, jobs=2, limits=engine.Limits(), progress=lambda _: None, function_of=function_of
    )
    try:
        with engine.terminable(), closing(outcomes):
            for _ in outcomes:
                pass
    except KeyboardInterrupt:
        return 130
    except engine.Terminated:
        return 143
    return 0


if __name__ == "__main__":
    sys.exit(main())
