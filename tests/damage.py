"""Ways in which files get damaged, for tests of what readers make of them."""

from __future__ import annotations

import random


def damage(content: bytes, kind: str, rng: random.Random) -> bytes:
    """``content`` cut short, with bits flipped, with a piece dropped or with a piece repeated."""
    mutated = bytearray(content)
    match kind:
        case "cut":
            del mutated[rng.randrange(len(mutated)) :]
        case "flip":
            for _ in range(rng.choice((1, 1, 4, 32))):
                mutated[rng.randrange(len(mutated))] ^= 1 << rng.randrange(8)
        case "drop":
            start = rng.randrange(len(mutated))
            del mutated[start : start + rng.randrange(1, 40)]
        case "repeat":
            start = rng.randrange(len(mutated))
            mutated[start:start] = mutated[start : start + rng.randrange(1, 40)]
    return bytes(mutated)
