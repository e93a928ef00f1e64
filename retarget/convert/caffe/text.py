"""Protobuf's text format without a schema: a prototxt as a tree of messages that know their lines.

All of the format is read: comments, strings of either quote with escapes that stand side by side as one, numbers of
any base, ``name: {}``, ``name {}`` and ``name < >``, lists in brackets, names of extensions, ``,`` and ``;`` as
separators. What a field may hold is not known here; ``Message`` says what it must when it is asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from retarget.convert.caffe.net import Message, Scalar
from retarget.convert.caffe.tokens import Token, tokens
from retarget.errors import RetargetError

MAX_BYTES = 16 << 20
"""ResNet-152 takes 0.2 MB."""
MAX_DEPTH = 64
MAX_VALUES = 250_000
"""Fields and messages: what is read takes more memory than its text. The largest nets have some 60,000."""

_CLOSING = {"{": "}", "<": ">"}
_TRUTHS = {"true": True, "True": True, "t": True, "false": False, "False": False, "f": False}
_FLOATS = {"inf": "inf", "infinity": "inf", "nan": "nan"}
_MAX_DIGITS = 400
_ESCAPE = re.compile(
    rb"\\(?:(?P<plain>[abfnrtv\\'\"?])|(?P<octal>[0-7]{1,3})|[xX](?P<hex>[0-9a-fA-F]{1,2})"
    rb"|u(?P<short>[0-9a-fA-F]{4})|U(?P<long>[0-9a-fA-F]{8})|(?P<wrong>.))",
    re.DOTALL,
)
_PLAIN = {
    b"a": b"\a", b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v",
    b"\\": b"\\", b"'": b"'", b'"': b'"', b"?": b"?",
}  # fmt: skip


def read(path: Path) -> Message:
    """The message in the file at ``path``. Raises ``RetargetError`` with line and column for what is not the format."""
    try:
        with path.open("rb") as file:
            content = file.read(min(path.stat().st_size, MAX_BYTES) + 1)
    except OSError as error:
        raise RetargetError(f"cannot read '{path}': {error.strerror or error}", "give the path of a prototxt") from None
    return parse(content, path.name)


def parse(content: bytes, name: str) -> Message:
    """The message in ``content``; places in it begin with ``name``."""
    if len(content) > MAX_BYTES:
        raise RetargetError(
            f"{name}: larger than {MAX_BYTES >> 20} MiB: that is no prototxt",
            "weights belong into the caffemodel: give `NET.prototxt,NET.caffemodel`",
        )
    if b"\0" in content[:4096]:
        raise RetargetError(
            f"{name}: this is binary, not the text of a prototxt",
            "name the prototxt first: `NET.prototxt,NET.caffemodel`",
        )
    # Comments come in any encoding; each byte is one character here, and strings are decoded one by one.
    return _Parser(content.removeprefix(b"\xef\xbb\xbf").decode("latin-1"), name).message()


def decoded(content: bytes) -> str:
    """The text of a name: UTF-8, or else each byte a character."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content.decode("latin-1")


class _Parser:
    """One token is looked ahead. Recursion is bounded by ``MAX_DEPTH``."""

    def __init__(self, text: str, name: str) -> None:
        self._name = name
        self._tokens: Iterator[Token] = tokens(text)
        self._next = next(self._tokens)
        self._values = 0
        self._line, self._place = 0, ""

    def message(self) -> Message:
        return Message(f"{self._name}:1", self._fields(None, 0))

    def _fields(self, opened: Token | None, depth: int) -> dict[str, list[Scalar | Message]]:
        """Fields up to what closes ``opened``, or to the end of the text."""
        closing = "" if opened is None else _CLOSING[opened.text]
        fields: dict[str, list[Scalar | Message]] = {}
        while True:
            token = self._next
            if token.kind == "end":
                if opened is None:
                    return fields
                self._refuse(
                    f"the '{opened.text}' of line {opened.line} is not closed",
                    "the file may be cut short: compare it with the original",
                )
            if token.kind == "mark" and token.text == closing:
                self._advance()
                return fields
            name = self._field_name(closing)
            self._field(fields.setdefault(name, []), name, depth)
            if self._next.kind == "mark" and self._next.text in ",;":
                self._advance()

    def _field_name(self, closing: str) -> str:
        token = self._next
        if token.kind == "word":
            self._advance()
            return token.text
        if not self._takes("["):
            self._expected("the name of a field" + (f" or '{closing}'" if closing else ""))
        parts = []
        while not self._takes("]"):
            token = self._next
            if token.kind not in ("word", "number") and token.text not in ("/", ".", "-"):
                self._expected("the name of an extension and ']'")
            parts.append(token.text)
            self._advance()
        return f"[{''.join(parts)}]"

    def _field(self, values: list[Scalar | Message], name: str, depth: int) -> None:
        colon = self._takes(":")
        token = self._next
        if token.kind == "mark" and token.text in _CLOSING:
            values.append(self._nested(depth))
        elif self._takes("["):
            if not self._takes("]"):
                while True:
                    nested = self._next.kind == "mark" and self._next.text in _CLOSING
                    values.append(self._nested(depth) if nested else self._scalar(name))
                    if self._takes("]"):
                        break
                    if not self._takes(","):
                        self._expected("',' or ']'")
        elif not colon:
            self._expected(f"':' or '{{' after '{name}'")
        else:
            values.append(self._scalar(name))

    def _nested(self, depth: int) -> Message:
        opened = self._next
        if depth >= MAX_DEPTH:
            self._refuse(f"nested more than {MAX_DEPTH} levels deep", "a net needs no more than 5: is it damaged?")
        self._count()
        if opened.line != self._line:  # one text for all that begins in this line
            self._line, self._place = opened.line, f"{self._name}:{opened.line}"
        place = self._place
        self._advance()
        return Message(place, self._fields(opened, depth + 1))

    def _scalar(self, name: str) -> Scalar:
        token = self._next
        self._count()
        if token.kind == "string":
            return self._string()
        negative = self._takes("-")
        token = self._next
        if token.kind == "number":
            value = self._number(token.text)
            self._advance()
            return -value if negative else value
        if token.kind == "word":
            self._advance()
            if token.text.lower() in _FLOATS:
                return float(f"{'-' if negative else ''}{_FLOATS[token.text.lower()]}")
            if not negative:
                return _TRUTHS.get(token.text, token.text)
        return self._expected(f"a {'number' if negative else 'value'} for '{name}'", token)

    def _number(self, text: str) -> int | float:
        if len(text) > _MAX_DIGITS:
            self._refuse(f"a number of {len(text)} digits", "write it shorter")
        if text[:2] in ("0x", "0X"):
            return int(text, 16)
        if text.isdecimal() and len(text) < 20:
            if text[0] == "0" and ("8" in text or "9" in text):
                self._refuse(f"'{text}' begins with 0, which makes it octal", f"write {text.lstrip('0')}")
            return int(text, 8 if text[0] == "0" else 10)
        return float(text.rstrip("fF"))

    def _string(self) -> str:
        """The strings that follow each other, as one."""
        parts = []
        while self._next.kind == "string":
            raw = self._next.text[1:-1]
            parts.append(raw.encode("latin-1") if "\\" not in raw else _ESCAPE.sub(self._escape, raw.encode("latin-1")))
            self._advance()
        return decoded(b"".join(parts))

    def _escape(self, found: re.Match[bytes]) -> bytes:
        if plain := found["plain"]:
            return _PLAIN[plain]
        if octal := found["octal"]:
            return bytes([int(octal, 8) & 0xFF])
        if digits := found["hex"]:
            return bytes([int(digits, 16)])
        point = int(found["short"] or found["long"] or b"ffffffff", 16)
        if point > 0x10FFFF or 0xD800 <= point < 0xE000:
            self._refuse(
                f"'{found.group().decode('latin-1')}' stands for no character", "write a backslash as two: '\\\\'"
            )
        return chr(point).encode()

    def _takes(self, mark: str) -> bool:
        """Whether ``mark`` is next; if so it is passed."""
        if self._next.kind != "mark" or self._next.text != mark:
            return False
        self._advance()
        return True

    def _advance(self) -> None:
        self._next = next(self._tokens)

    def _count(self) -> None:
        self._values += 1
        if self._values > MAX_VALUES:
            self._refuse(f"more than {MAX_VALUES:,} values", "weights belong into the caffemodel")

    def _expected(self, wanted: str, token: Token | None = None) -> NoReturn:
        token = token or self._next
        hint = "see the line above too: a quote, a colon or a brace may be missing"
        if token.kind == "wrong" and token.text in "\"'":
            self._refuse("the string is not closed in its line", f"end it with {token.text}", token)
        shown = token.text if token.text.isprintable() and token.text.isascii() else f"\\x{ord(token.text[0]):02x}"
        met = "the end of the file" if token.kind == "end" else f"'{shown if len(shown) < 40 else f'{shown[:37]}...'}'"
        self._refuse(f"expected {wanted}, found {met}", hint, token)

    def _refuse(self, message: str, hint: str, token: Token | None = None) -> NoReturn:
        token = token or self._next
        raise RetargetError(f"{self._name}:{token.line}:{token.column}: {message}", hint)
