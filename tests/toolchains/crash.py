"""Commit one artifact again and again, killed one file operation later each time: ``python -m toolchains.crash STORE``.

Prints how many operations there were, and what was found wrong after a kill.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from pathlib import Path

from retarget.store import Store
from toolchains.steps import step

OPERATIONS = {"open", "fcntl.flock", "shutil.rmtree"} | {
    f"os.{name}" for name in ("mkdir", "rename", "remove", "rmdir", "chmod", "utime", "listdir", "scandir")
}


def build(root: Path) -> None:
    """All that a build does in a store."""
    store = Store(root)
    made = step("write")
    with store.lease([made.key]), store.stage() as staging:
        for name in ("a", "b", "nested/c"):
            (staging.out / name).parent.mkdir(exist_ok=True)
            (staging.out / name).write_text(name * 1000)
        staging.log.write_text("log")
        store.commit(staging, made, facts={}, versions={}, code={})


def build_until(root: Path, last: int) -> bool:
    """Build in a child that is killed before operation ``last``; whether it came to its end before."""
    child = os.fork()
    if child == 0:
        count = itertools.count()

        def hook(event: str, _: tuple[object, ...]) -> None:
            if event in OPERATIONS and next(count) == last:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        build(root)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def main(base: Path) -> None:
    """Kill before the first operation, the second, and so on, each in a store of its own."""
    for last in itertools.count():
        root = base / str(last)
        finished = build_until(root, last)
        store = Store(root)
        damage = store.verify()
        present = store.get(step("write").key)
        store.sweep()
        left = [*(root / "staging").iterdir(), *(root / "leases").iterdir()]
        build(root)
        again = store.verified(step("write").key)
        if damage or left or (present is not None and present != again):
            print(f"killed before operation {last}: {damage}, {left}")
        if finished:
            print(last)
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]))
