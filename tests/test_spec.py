import doctest

import hypothesis.strategies as st
import pytest
from hypothesis import given

from retarget import spec
from retarget.errors import RetargetError
from retarget.spec import DTYPES, DimRange, TensorSpec, symbols

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
SPECS = st.builds(
    TensorSpec,
    NAMES,
    st.sampled_from(sorted(DTYPES)),
    st.lists(st.integers(1, 10**9) | NAMES, max_size=6).map(tuple),
)


def test_the_docstring_examples_hold() -> None:
    result = doctest.testmod(spec)
    assert result.attempted == 2
    assert result.failed == 0


@given(SPECS)
def test_a_spec_reads_back_what_it_writes(written: TensorSpec) -> None:
    assert TensorSpec.parse(str(written)) == written
    assert TensorSpec.of(written.name, written.type) == written


@given(st.text())
def test_any_text_gives_a_spec_or_an_error_of_ours(text: str) -> None:
    for parse in (TensorSpec.parse, lambda text: TensorSpec.of("x", text), DimRange.parse):
        hint: str | None = "none is needed"
        try:
            parse(text)
        except RetargetError as error:
            hint = error.hint
        assert hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("float32[N]", "has no name"),
        ("=float32[N]", "has no name"),
        ("x=float32", "'float32' is not a tensor spec"),
        ("x=float32[N", "is not a tensor spec"),
        ("x=float32[[N]]", "is not a tensor spec"),
        ("x=float33[N]", "unknown dtype 'float33'"),
        ("x=float32[N,]", "'' is not a dimension"),
        ("x=float32[0]", "'0' is not a dimension"),
        ("x=float32[-1]", "'-1' is not a dimension"),
        ("x=float32[1.5]", "'1.5' is not a dimension"),
        ("x=float32[a b]", "'a b' is not a dimension"),
        ("x=float32[٣]", "'٣' is not a dimension"),
        ("x=float32[" + 5000 * "9" + "]", "is not a dimension"),
    ],
)
def test_a_bad_spec_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(RetargetError) as caught:
        TensorSpec.parse(text)
    assert message in caught.value.message
    assert caught.value.hint


def test_an_unknown_dtype_gets_the_nearest_as_a_hint() -> None:
    with pytest.raises(RetargetError) as caught:
        TensorSpec.of("x", "flot32[N]")
    assert caught.value.hint == "did you mean 'float32'?"


def test_white_space_and_scalars_are_taken() -> None:
    assert TensorSpec.parse(" x = int64 [ N , 2 ] ") == TensorSpec("x", "int64", ("N", 2))
    assert TensorSpec.parse("x=bool[]") == TensorSpec("x", "bool", ())


def test_symbols_come_in_order_and_once() -> None:
    specs = [TensorSpec.parse("a=int64[N,S]"), TensorSpec.parse("b=int64[S,N,T]")]
    assert specs[1].symbols == ("S", "N", "T")
    assert symbols(specs) == ("N", "S", "T")
    assert specs[1].at({"S": 5, "N": 2, "T": 1}) == (5, 2, 1)


@given(st.lists(st.integers(1, 10**9), min_size=3, max_size=3).map(sorted))
def test_a_range_reads_back_what_it_writes(sizes: list[int]) -> None:
    written = DimRange(*sizes)
    assert DimRange.parse(str(written)) == written


def test_one_number_is_a_fixed_size() -> None:
    assert DimRange.parse("8") == DimRange(8, 8, 8)


@pytest.mark.parametrize(
    "text", ["", ":", "1:2", "1:2:3:4", "0:1:2", "3:2:1", "1:3:2", "a:b:c", "1:b:3", "-1:1:1", "1_0:20:30", "1::3"]
)
def test_a_bad_range_is_refused(text: str) -> None:
    with pytest.raises(RetargetError, match="is not a dimension range"):
        DimRange.parse(text)
