"""Reads verdicts and scores out of what a judge says: its own last well-formed answer counts, or none does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from tenet.records import Label

_ANSWER = re.compile(
    r"(?:^|\n|\b(?:answer|verdict|choice|option|better|prefer(?:red)?)\b[^\n.]{0,40}?[:\s])"
    r"[\s*\"'“(\[]*(?P<found>[AB]|tie|neither|both)[\s*\"'”)\].!]*(?=$|\n)",
    re.IGNORECASE,
)
_END = r"(?![\w/%]|[-–.,]\d|\s*(?:-|–|to|or|and)\s*\d)"  # "3-5", "3 to 5" and "1,000" are no scores
_VALUE = r"(?<![\w.,/-])(?P<{0}>[-−]?\d+(?:\.\d+)?)"
_SCALE = r"\s*(?:/|out\s+of)\s*(?P<{0}_of>\d+(?:\.\d+)?)"
_SCORE = re.compile(
    # a line that is nothing but a score; one behind "score:" and the like; one with its scale, "8 out of 10"
    rf"(?:^|\n)[\s*\"'“(\[#]*{_VALUE}(?:{_SCALE})?{_END}[\s*\"'”)\].!]*(?=$|\n)".replace("{0}", "line")
    + (
        r"|\b(?:score|rating|grade|mark)\b(?:\s*\([^)\n]*\))?[^\n\d.;]{,40}?[\s:=*\"'“(\[]"
        rf"{_VALUE}(?:{_SCALE})?{_END}"
    ).replace("{0}", "named")
    + rf"|{_VALUE}{_SCALE}{_END}".replace("{0}", "scaled"),
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"^\W*(?:i(?:'m| am) (?:sorry|unable|not able)|i (?:can(?:no|')t|won't|will not|must decline)|"
    r"sorry,|as an ai\b)",
    re.IGNORECASE,
)
# Quoted words are not the judge's own; a quoted answer is a single word, and stays. What opens and does not close
# is quoted up to its end. Each looks ahead for its first space: to try every space in turn would take minutes on a
# long reply that opens a quote and goes on.
_QUOTED = re.compile(
    r"<(?P<tag>conversation|reply(?:_[ab])?|human|assistant|system)>.*?(?:</(?P=tag)>|$)|```.*?(?:```|$)"
    r"|“(?=[^”\s]*\s)[^”]*(?:”|$)|«(?=[^»\s]*\s)[^»]*(?:»|$)|„(?=[^“”\s]*\s)[^“”]*(?:[“”]|$)"
    r"|\"(?=[^\"\s]*\s)[^\"]*\"|\"(?=[^\"\s]*\s)[^\"\n]*(?:\n[^\"\n]*)?(?=\n|$)"
    r"|`(?=[^`\s]*\s)[^`\n]*(?:\n[^`\n]*)?`|(?<!\w)'(?=[^'\s]*\s)[^'\n]*(?:\n[^'\n]*)?'(?!\w)"
    r"|(?:^|(?<=\n))[ \t]*>[^\n]*",
    re.DOTALL | re.IGNORECASE,
)


def is_refusal(text: str) -> bool:
    """Whether a text opens as a refusal does."""
    return bool(_REFUSAL.search(text.strip().replace("’", "'")[:200]))


def verdict(text: str, shown: Sequence[str] = (), cut: bool = False) -> Label:
    """The label that a judge's text states: of the first slot (A), the second (B), or a tie.

    Only a line that is nothing but an answer, or ends in one after "answer:", "verdict:" and the
    like, counts; the last such line wins. What stands in quotes, or repeats a line of the texts
    that were `shown`, is not the judge's own; its first line is, and its last unless it was `cut`.
    Otherwise `refused` if the text opens as a refusal, else `invalid`.
    """
    last = _last(_ANSWER, text, shown, cut)
    if last is None:
        return "refused" if is_refusal(text) else "invalid"
    slots: dict[str, Literal["A", "B", "tie"]] = {"A": "A", "B": "B"}
    return slots.get(last["found"].upper(), "tie")


def score(text: str, shown: Sequence[str] = (), cut: bool = False) -> float | None:
    """The score from 1 to 10 that a judge's text states last: "8", "Score: 8.5", "8/10", "8 out of 10".

    None if there is none, or if the last one is out of range or of another scale. What was quoted or
    shown counts as little as in `verdict`.
    """
    last = _last(_SCORE, text, shown, cut)
    if last is None:
        return None
    name = next(n for n in ("line", "named", "scaled") if last[n] is not None)
    value, of = float(last[name].replace("−", "-")), last[f"{name}_of"]
    return value if 1 <= value <= 10 and (of is None or float(of) == 10) else None


def _last(pattern: re.Pattern[str], text: str, shown: Sequence[str], cut: bool) -> re.Match[str] | None:
    """The last match in the judge's own words."""
    own = _QUOTED.sub("…", text.strip().replace("\r\n", "\n")).strip()
    planted = {line.strip() for t in shown for line in t.splitlines()}
    for match in reversed(list(pattern.finditer(own))):
        at = match.end(match.lastindex or 0)  # the answer's line: the match may take in empty lines after it
        start, end = own.rfind("\n", 0, at) + 1, own.find("\n", at)
        line = own[start : end if end >= 0 else len(own)].strip()
        edge = start == 0 or (end < 0 and not cut)
        if edge or not (line in planted or (len(line) > 12 and any(line in t for t in shown))):
            return match
    return None
