"""The text reader against protobuf's own, which knows a schema of each kind of field."""

from __future__ import annotations

import math
import random
import tracemalloc

import pytest
from damage import damage
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import Message as ProtoMessage
from hypothesis import given, settings
from hypothesis import strategies as st

from retarget.convert.caffe import text
from retarget.convert.caffe.net import Message, Scalar
from retarget.errors import RetargetError

KINDS = {"i": "INT64", "d": "DOUBLE", "s": "STRING", "b": "BOOL", "e": "ENUM", "m": "MESSAGE"}


def _schema() -> type[ProtoMessage]:
    """``message M``, which holds any number of each of ``KINDS``."""
    file = descriptor_pb2.FileDescriptorProto(name="m.proto", syntax="proto2")
    message = file.message_type.add(name="M")
    for number, (name, kind) in enumerate(KINDS.items(), start=1):
        field = message.field.add(name=name, number=number)
        field.label = field.LABEL_REPEATED
        field.type = getattr(field, f"TYPE_{kind}")
        if kind == "ENUM":
            field.type_name = ".Pool"
        if kind == "MESSAGE":
            field.type_name = ".M"
    enum = file.enum_type.add(name="Pool")
    for number, name in enumerate(("MAX", "AVE", "STOCHASTIC")):
        enum.value.add(name=name, number=number)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    made: type[ProtoMessage] = message_factory.GetMessageClass(pool.FindMessageTypeByName("M"))
    return made


M = _schema()


def agrees(ours: Message, theirs: ProtoMessage) -> None:
    for name, kind in KINDS.items():
        expected = list(getattr(theirs, name))
        found = list(ours.fields.get(name, ()))
        assert len(found) == len(expected)
        for mine, other in zip(found, expected, strict=True):
            if isinstance(mine, Message):
                agrees(mine, other)
            else:
                assert equal(mine, other, kind), (name, mine, other)


def equal(mine: Scalar, other: object, kind: str) -> bool:
    if kind == "ENUM":
        return mine in (other, ("MAX", "AVE", "STOCHASTIC")[int(str(other))])
    if kind == "DOUBLE":
        assert isinstance(mine, int | float)
        assert isinstance(other, float)
        return math.isnan(mine) if math.isnan(other) else float(mine) == other
    return mine == other


def messages(depth: int = 2) -> st.SearchStrategy[ProtoMessage]:
    fields = {
        "i": st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
        "d": st.lists(st.floats(), max_size=3),
        "s": st.lists(st.text(st.characters(codec="utf-8"), max_size=8), max_size=3),
        "b": st.lists(st.booleans(), max_size=2),
        "e": st.lists(st.integers(0, 2), max_size=2),
        "m": st.lists(messages(depth - 1), max_size=2) if depth else st.just([]),
    }
    return st.fixed_dictionaries(fields).map(lambda values: M(**values))


@settings(max_examples=150, deadline=None)
@given(messages(), st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_reads_what_protobuf_writes(
    message: ProtoMessage, one_line: bool, short: bool, pointy: bool, unescaped: bool
) -> None:
    written = text_format.MessageToString(
        message,
        as_one_line=one_line,
        use_short_repeated_primitives=short,
        pointy_brackets=pointy,
        as_utf8=unescaped,
    )
    agrees(text.parse(written.encode(), "f"), message)


@pytest.mark.parametrize(
    "written",
    [
        "",
        "# only a comment",
        "i: 1 i: -1 i: 0x1F i: -0X1f i: 017 i: 0",
        "d: 1 d: 1. d: .5 d: 1e3 d: 1.5E-3 d: 1f d: 1.5F d: 1.f d: 1e3f d: -2.5 d: 0",
        "d: inf d: -inf d: nan d: -nan d: Infinity d: -INFINITY",
        "d: 123456789012345678901234567890",
        "s: 'single' s: \"double\" s: 'it\"s' s: \"it's\" s: ''",
        r"""s: "a\n\t\r\\\'\"" s: "\101\x42\x4" s: "\a\b\f\v" """,
        "s: 'one' 'two'\n  \"three\" # four\n 'five'",
        r's: "\u00e9\U0001F600" s: "\303\251"',
        "s: 'caf\u00e9'",
        "b: true b: false b: True b: False b: t b: f b: 1 b: 0",
        "e: MAX e: AVE e: 2",
        "m { i: 1 } m: { i: 2 } m < i: 3 > m: < i: 4 > m {} m<>",
        "i: [1, 2, 3] i: [] m: [{ i: 1 }, < i: 2 >] m [{ }] s: ['a' 'b', \"c\"]",
        "i: 1, i: 2; m { i: 3, }; d:1,d:2",
        "i:1i:2",
        "m{m{m{i:1}}}i:2#end",
        "i # comment\n : # comment\n 1 # comment",
        "\ufeffi: 1",
        "i:\r\n1\r\n",
        "i: - 5",
    ],
)
def test_reads_forms_as_protobuf_does(written: str) -> None:
    theirs = M()
    try:
        text_format.Parse(written.removeprefix("\ufeff"), theirs)
    except text_format.ParseError:
        # Its Python reader is stricter than its C++ one, which is what Caffe uses, about what follows a number.
        assert written in ("i:1i:2", "i: - 5", "d: -nan")
        return
    agrees(text.parse(written.encode(), "f"), theirs)


def test_what_protobuf_takes_of_damaged_text_is_read_alike() -> None:
    rng = random.Random(0)
    whole = (
        b"""i: 1 m { d: 1.5 s: "a\\n" 'b' b: true } # comment\n"""
        b"""e: MAX m: < i: [1, 2], e: AVE; > s: 'x'\nd: [1e3, -inf]\n"""
    )
    taken = 0
    for index in range(3000):
        damaged = damage(whole, ("cut", "flip", "drop", "repeat")[index % 4], rng).replace(b"\0", b" ")
        theirs = M()
        try:
            text_format.Parse(damaged, theirs)
        except (text_format.ParseError, UnicodeDecodeError, DeprecationWarning):  # the last for an unknown escape
            continue
        taken += 1
        agrees(text.parse(damaged, "f"), theirs)
    assert taken > 200


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("layer {\n  name: }", "f:2:9: expected a value for 'name', found '}'"),
        ('layer {\n  name: "a\n}', "f:2:9: the string is not closed in its line"),
        ("a {\n b {\n", "f:3:1: the '{' of line 2 is not closed"),
        ("a { b: 1 >", "f:1:10: expected the name of a field or '}', found '>'"),
        ("}", "f:1:1: expected the name of a field, found '}'"),
        ("a 1", "f:1:3: expected ':' or '{' after 'a', found '1'"),
        ("a:", "f:1:3: expected a value for 'a', found the end of the file"),
        ("a: [1 2]", "f:1:7: expected ',' or ']', found '2'"),
        ("a: -x", "f:1:5: expected a number for 'a', found 'x'"),
        ("a: 08", "f:1:4: '08' begins with 0, which makes it octal"),
        ("a: 1abc", "f:1:4: expected a value for 'a', found '1'"),
        ('a: "\\q"', "f:1:4: '\\q' stands for no character"),
        ('a: "\\ud800"', "f:1:4: '\\ud800' stands for no character"),
        ("a: \x01", "f:1:4: expected a value for 'a', found '\\x01'"),
        ("[a.b: 1", "f:1:5: expected the name of an extension and ']', found ':'"),
        ("a: " + "1" * 500, "f:1:4: a number of 500 digits"),
    ],
)
def test_an_error_names_line_and_column(written: str, message: str) -> None:
    with pytest.raises(RetargetError) as caught:
        text.parse(written.encode(), "f")
    assert caught.value.message == message
    assert caught.value.hint


def test_messages_know_their_lines() -> None:
    read = text.parse(b"# one\nlayer {\n  name: 'a'\n  sub { }\n}\nlayer: <\n>", "net.prototxt")
    assert read.place == "net.prototxt:1"
    assert [each.place for each in read.messages("layer")] == ["net.prototxt:2", "net.prototxt:6"]
    assert read.messages("layer")[0].message("sub").place == "net.prototxt:4"


def test_a_question_mark_may_be_escaped() -> None:
    assert text.parse(rb"s: 'what\?'", "f").word("s") == "what?"  # in C++ it may be; protobuf's Python does not know


def test_extensions_keep_their_brackets() -> None:
    read = text.parse(b"[my.fork] { a: 1 } [type.host/x-y.Z]: 2", "f")
    assert list(read.fields) == ["[my.fork]", "[type.host/x-y.Z]"]


def test_comments_may_be_in_any_encoding() -> None:
    read = text.parse(b"# \xb2\xe3 in GBK\nname: 'caf\xc3\xa9' other: 'caf\xe9'", "f")
    assert (read.word("name"), read.word("other")) == ("café", "café")


@pytest.mark.parametrize("opening", ["a{", "a:<", "a:[{"])
def test_deep_nesting_is_refused(opening: str) -> None:
    with pytest.raises(RetargetError, match="nested more than 64 levels") as caught:
        text.parse(opening.encode() * 100_000, "f")
    assert caught.value.hint


@pytest.mark.parametrize("piece", ["a{}", "a:1 ", "a:[1,1,1,1]", "a:''", "a:b\n", "a{a{a{}}}", "[a]:1 ", "'"])
def test_memory_is_bounded(piece: str) -> None:
    content = piece.encode() * (15_000 // len(piece))
    tracemalloc.start()
    try:
        text.parse(content, "f")
    except RetargetError as error:
        assert error.hint  # noqa: PT017 - some of them are not the format
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 130 * len(content) + 100_000


def test_too_many_values_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "MAX_VALUES", 100)
    with pytest.raises(RetargetError, match="more than 100 values"):
        text.parse(b"a: 1\n" * 101, "f")


def test_binary_and_huge_files_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RetargetError, match="this is binary"):
        text.parse(b"\n\x03net\x00\x01", "f")
    monkeypatch.setattr(text, "MAX_BYTES", 10)
    with pytest.raises(RetargetError, match="that is no prototxt"):
        text.parse(b"name: 'net'", "f")
