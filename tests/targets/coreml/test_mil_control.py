"""If, Loop and Scan for Core ML against ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import target_testing as t
import written

from retarget.errors import Unsupported

if TYPE_CHECKING:
    from retarget.protocols import Feeds
    from retarget.targets.coreml import DeploymentTarget

EVERY = ("iOS15", "iOS17", "iOS18")
YES = "yes = Constant <value = bool {1}> ()"


def numbers(*shape: int) -> np.ndarray:
    return t.normal(*shape, seed=3)


LOOPS: dict[str, tuple[str, list[Feeds]]] = {
    "two values that change places": (
        f"""g (float[2] a, float[2] b, int64 n) => (float[2] x, float[2] y) {{ {YES}
            x, y = Loop (n, yes, a, b) <body = body (int64 i, bool c, float[2] p, float[2] q)
                => (bool more, float[2] r, float[2] s) {{ more = Identity(c) r = Identity(q) s = Identity(p) }}> }}""",
        [{"a": numbers(2), "b": numbers(2) + 1, "n": np.array(count)} for count in (3, 4)],
    ),
    "an end before the last trip, rows until then": (
        f"""g (float[N] a, int64 n) => (float[N] x, float[T] ys) {{ {YES}
            x, ys = Loop (n, yes, a) <body = body (int64 i, bool c, float[N] p) => (bool more, float[N] r, float s) {{
                k = Constant <value = float {{4.0}}> () r = Add(p, p) m = ReduceMax <keepdims = 0> (r) s = Identity(m)
                more = Less(m, k) }}> }}""",
        [{"a": np.abs(numbers(size)), "n": np.array(9)} for size in (3, 4)],
    ),
    "a number of trips alone, and a value that stays": (
        """g (float[2] a, float[2] b) => (float[2] x, float[2] y, int64[4] z) { n = Constant <value = int64 {4}> ()
            x, y, z = Loop (n, , a, b) <body = body (int64 i, bool c, float[2] p, float[2] q)
                => (bool more, float[2] r, float[2] s, int64 k)
                { more = Constant <value = bool {1}> () r = Add(p, q) s = Identity(q) k = Identity(i) }> }""",
        [{"a": numbers(2), "b": numbers(2) + 1}],
    ),
    "a condition alone": (
        """g (float[2] a, bool go) => (float[2] x) {
            x = Loop (, go, a) <body = body (int64 i, bool c, float[2] p) => (bool more, float[2] r)
                { k = Constant <value = int64 {3}> () more = Less(i, k) r = Add(p, a) }> }""",
        [{"a": numbers(2), "go": np.array(go)} for go in (True, False)],
    ),
    "truths": (
        """g (bool[3] a, bool[3] b) => (bool[3] x, bool[2,3] z) { n = Constant <value = int64 {2}> ()
            x, z = Loop (n, , a) <body = body (int64 i, bool c, bool[3] p) => (bool more, bool[3] r, bool[3] k)
                { more = Constant <value = bool {1}> () r = Xor(p, b) k = Not(r) }> }""",
        [{"a": np.array([True, False, True]), "b": np.array([True, True, False])}],
    ),
    "a value that grows": (
        """g (float[2] a, int64 n) => (float[M] x) {
            x = Loop (n, , a) <body = body (int64 i, bool c, float[K] p) => (bool more, float[L] r)
                { more = Constant <value = bool {1}> () r = Concat <axis = 0> (p, a) }> }""",
        [{"a": numbers(2), "n": np.array(3)}],
    ),
    "a branch inside": (
        """g (float[N] a, int64 n) => (float[N] x) {
            x = Loop (n, , a) <body = body (int64 i, bool c, float[N] p) => (bool more, float[N] r) {
                more = Constant <value = bool {1}> () two = Constant <value = int64 {2}> () half = Mod(i, two)
                zero = Constant <value = int64 {0}> () even = Equal(half, zero)
                r = If (even) <then_branch = one () => (float[N] u) { u = Add(p, a) },
                    else_branch = other () => (float[N] v) { v = Mul(p, p) }> }> }""",
        [{"a": numbers(size), "n": np.array(4)} for size in (3, 5)],
    ),
}


@pytest.mark.parametrize("target", EVERY)
@pytest.mark.parametrize("name", LOOPS)
def test_loop(name: str, target: DeploymentTarget) -> None:
    text, fed = LOOPS[name]
    written.check(t.model(text), *fed, target=target)


@pytest.mark.parametrize("target", EVERY)
def test_scan(target: DeploymentTarget) -> None:
    """Along other axes than the first, from the end, of an open length."""
    model = t.model(
        """g (float[N] s, float[T,N] x, int32[2,T] k) => (float[N] y, float[N,T] z, int32[T,2] w) {
            y, z, w = Scan (s, x, k) <num_scan_inputs = 2, scan_input_axes = [0, 1], scan_input_directions = [1, 0],
                scan_output_axes = [1, 0], scan_output_directions = [0, 1],
                body = b (float[N] p, float[N] q, int32[2] i) => (float[N] r, float[N] o, int32[2] j)
                    { r = Add(p, q) o = Mul(r, q) j = Add(i, i) }> }"""
    )
    fed = [
        {"s": numbers(size), "x": numbers(size + 1, size), "k": np.arange(2 * size + 2, dtype=np.int32).reshape(2, -1)}
        for size in (3, 4)
    ]
    written.check(model, *fed, target=target)


IF = """g (float[N,3] a, bool c) => (float[N,3] y, int64 k) {
    y, k = If (c) <then_branch = one () => (float[N,3] u, int64 l) { u = Neg(a) l = Constant <value = int64 {1}> () },
        else_branch = other () => (float[N,3] v, int64 m) { v = Identity(a) m = Constant <value = int64 {2}> () }> }"""


@pytest.mark.parametrize("target", EVERY)
def test_if(target: DeploymentTarget) -> None:
    written.check(
        t.model(IF),
        {"a": numbers(2, 3), "c": np.array(True)},
        {"a": numbers(5, 3), "c": np.array(False)},
        target=target,
    )


def test_a_known_condition_leaves_one_branch() -> None:
    model = t.model(IF.replace(", bool c)", ")").replace("{\n", "{ c = Constant <value = bool {0}> ()\n", 1))
    written.check_open(model, 2, 5)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            """g (float[2,3] a, bool c) => (float[M,3] y) {
                y = If (c) <then_branch = one () => (float[2,3] u) { u = Neg(a) },
                    else_branch = other () => (float[4,3] v) { v = Concat <axis = 0> (a, a) }> }""",
            r"its branches give \[2, 3\] and \[4, 3\]: they must be of one shape",
        ),
        (
            """g (float[2] a, bool c) => (float[2] x, float[T,2] z) {
                x, z = Loop (, c, a) <body = body (int64 i, bool d, float[2] p) => (bool e, float[2] r, float[2] o)
                    { e = Identity(d) r = Add(p, a) o = Neg(p) }> }""",
            "'o' has a row for each trip, and how many there are is not known before",
        ),
        (
            """g (float[2] a) => (float[2] x) { n = Constant <value = int64 {0}> ()
                x = Loop (n, , a) <body = body (int64 i, bool d, float[2] p) => (bool e, float[2] r)
                    { e = Constant <value = bool {1}> () r = Add(p, a) }> }""",
            "it is never run",
        ),
        (
            """g (float[2] a, bool c) => (float[2] y) {
                y = If (c) <then_branch = one () => (float[2] u) { u = RandomUniformLike(a) },
                    else_branch = other () => (float[2] v) { v = Neg(a) }> }""",
            "there are nodes inside it that cannot be written",
        ),
    ],
)
def test_refused(text: str, reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        written.interpreted(t.model(text))
