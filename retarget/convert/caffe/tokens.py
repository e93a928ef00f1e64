"""Tokens of protobuf's text format: no numpy, for a look at a file's head and for reading all of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple, TypeAlias, cast

Kind: TypeAlias = Literal["word", "number", "string", "mark", "end", "wrong"]

# Possessive, as a damaged file must not make it try again and again.
_TOKEN = re.compile(
    r"""
    (?P<space> (?: [ \t\r\n\f\v]++ | \#[^\n]*+ )++ )
  | (?P<word> [A-Za-z_][A-Za-z0-9_]*+ )
  | (?P<number> (?> 0[xX][0-9a-fA-F]++ | (?> [0-9]++ (?: \.[0-9]*+ )?+ | \.[0-9]++ ) (?: [eE][+-]?+[0-9]++ )?+ [fF]?+ )
      (?! [A-Za-z0-9_.] ) )
  | (?P<string> "[^"\\\n]*+(?: \\[^\n][^"\\\n]*+ )*+" | '[^'\\\n]*+(?: \\[^\n][^'\\\n]*+ )*+' )
  | (?P<mark> [{}<>\[\]:,;./-] )
    """,
    re.VERBOSE,
)


class Token(NamedTuple):
    """``end`` is that of the text; ``wrong`` a character that begins nothing."""

    kind: Kind
    text: str
    at: int
    line: int
    column: int
    """Count from 1."""


def tokens(text: str) -> Iterator[Token]:
    """All tokens of ``text`` (comments and white space left out), then one of the end, or the first wrong one."""
    at, line, line_start = 0, 1, 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            yield Token("wrong", text[at], at, line, at - line_start + 1)
            return
        kind = found.lastgroup
        if kind == "space":
            skipped = text.count("\n", at, found.end())
            if skipped:
                line, line_start = line + skipped, text.rindex("\n", at, found.end()) + 1
        else:
            yield Token(cast("Kind", kind), found.group(), at, line, at - line_start + 1)
        at = found.end()
    yield Token("end", "", at, line, at - line_start + 1)
