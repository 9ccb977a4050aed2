"""What changed between two texts, word by word."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from typing import Literal, NamedTuple

Op = Literal["same", "out", "in"]
# A word or a sign, with the space behind it: spaces of their own would match everywhere and tear words apart.
_PIECE = re.compile(r"\w+(?:['’-]\w+)*\s*|\s+|[^\w\s]\s*")


class Piece(NamedTuple):
    """A run of words that stayed, went out, or came in."""

    op: Op
    text: str


def pieces(old: str, new: str) -> list[Piece]:
    """The way from `old` to `new`: joined, the "same" and "out" pieces give `old`, the "same" and "in" ones `new`."""
    a, b = _PIECE.findall(old), _PIECE.findall(new)
    found: list[Piece] = []
    for tag, i, j, k, m in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if tag == "equal":
            found.append(Piece("same", "".join(b[k:m])))
            continue
        found += [Piece("out", "".join(a[i:j]))] if j > i else []
        found += [Piece("in", "".join(b[k:m]))] if m > k else []
    return found


def marked(old: str, new: str) -> str:
    """One line of text with [-what went out-] and {+what came in+}, as wdiff writes it."""
    form = {"same": "{}", "out": "[-{}-]", "in": "{{+{}+}}"}
    said = "".join(form[p.op].format(p.text.strip()) + _space(p.text) if p.op != "same" else p.text
                   for p in pieces(old, new))  # fmt: skip
    return " ".join(said.split())


def changed(old: str, new: str) -> float:
    """How much of two texts differs: 0 for the same words, 1 if they share none (1 - difflib's ratio, on words)."""
    a, b = old.split(), new.split()
    return 0.0 if a == b else 1.0 - SequenceMatcher(None, a, b, autojunk=False).ratio()


def _space(text: str) -> str:
    return text[len(text.rstrip()) :]
