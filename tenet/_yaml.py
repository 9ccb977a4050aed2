"""A strict YAML reader: events are built straight into plain data, so nothing is ever expanded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NoReturn

import yaml

from tenet.errors import InputError, SettingsError

Path_ = tuple[str | int, ...]
MAX_BYTES = 32 * 2**20
MAX_DEPTH = 50

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is about eight times faster
_events: Any = getattr(yaml, "parse")  # noqa: B009 (its stubs say nothing of what it yields)
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,299})")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]{1,300}|(?:0|[1-9][0-9]{0,299})(?:\.[0-9]{0,300})?)(?:[eE][-+]?[0-9]{1,4})?")
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "null", "Null", "NULL", "~")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **{".inf": float("inf"), "-.inf": float("-inf"), ".nan": float("nan")},
}
_CONTROL = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def read_text(source: Path | str, where: str, error: type[InputError] = SettingsError) -> str:
    """The text of a file (a Path) or of a str; `error` if it is missing, too big or not UTF-8."""
    if isinstance(source, Path):
        try:
            if source.is_dir():
                raise error("is a folder", where=where, fix="name a YAML file")
            size = source.stat().st_size
            raw = source.read_bytes() if size <= MAX_BYTES else b""
        except FileNotFoundError:
            raise error("no such file", where=where, fix="check the path") from None
        except OSError as e:
            raise error(f"cannot be read: {e.strerror}", where=where) from None
        except ValueError:
            raise error("cannot be read: its name holds U+0000", where=where, fix="correct the path") from None
    else:
        raw = source.encode("utf-8", "surrogatepass")
        size = len(raw)
    if size > MAX_BYTES:
        raise error(f"is {size:,} bytes long", where=where, fix=f"at most {MAX_BYTES:,} bytes")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = raw.count(b"\n", 0, e.start) + 1
        what = f"byte 0x{raw[e.start]:02x} is not UTF-8"
        raise error(what, where=f"{where}, line {line}", fix="save the file as UTF-8") from None


def plain(text: str) -> Any:
    """What an unquoted scalar means: null, true, false, decimal numbers; all else is a string.

    So `no`, `on`, `1_000`, `08`, `0x1f`, `1:30` and dates stay the words that were written.
    """
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in "+-.0123456789":
        return text
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def parse(
    text: str,
    where: str,
    lines: dict[Path_, int] | None = None,
    error: type[InputError] = SettingsError,
) -> Any:
    """Plain data of one YAML document; `lines` receives the line (from 1) of every path."""
    builder = _Builder(where, lines, error)
    try:
        for event in _events(text, Loader=_LOADER):
            builder.take(event)
    except yaml.reader.ReaderError:
        bad = _CONTROL.search(text)
        at = bad.start() if bad else 0
        line = text.count("\n", 0, at) + 1
        what = f"character U+{ord(text[at]):04X} is not allowed in YAML"
        raise error(what, where=f"{where}, line {line}", fix="remove it") from None
    except yaml.MarkedYAMLError as e:
        _syntax(text, where, e, error)
    return builder.root


def _syntax(text: str, where: str, e: yaml.MarkedYAMLError, error: type[InputError]) -> NoReturn:
    mark = e.problem_mark or e.context_mark
    number = mark.line if mark else 0
    rows = text.split("\n")
    row = rows[number] if number < len(rows) else ""
    spot = f"{where}, line {number + 1}"
    if "\t" in row[: len(row) - len(row.lstrip())] or "'\\t'" in (e.problem or ""):
        raise error("a tab is used for indentation", where=spot, fix="use spaces") from None
    what = f"is not YAML: {e.problem or e.context}"
    fix = f"the line reads {row.strip()[:60]!r}" if row.strip() else "look at the line before it"
    if ": " in row.partition(": ")[2] or "cannot start any token" in (e.problem or ""):
        fix += "; text with a colon or a special sign needs quotes, or a block under |"
    raise error(what, where=spot, fix=fix) from None


class _Builder:
    """Takes parse events, keeps a stack of open containers, and refuses what is not plain data."""

    def __init__(self, where: str, lines: dict[Path_, int] | None, error: type[InputError]) -> None:
        self.where, self.lines, self.error = where, lines, error
        self.root: Any = None
        self._documents = 0
        # One entry per open container: [container, key that waits for its value or None, path].
        self._stack: list[list[Any]] = []

    def take(self, event: Any) -> None:
        """Puts one event in its place."""
        kind = event.__class__
        if kind is yaml.ScalarEvent:
            self._scalar(event)
        elif kind is yaml.MappingStartEvent or kind is yaml.SequenceStartEvent:
            self._open(event, {} if kind is yaml.MappingStartEvent else [])
        elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
            self._stack.pop()
        elif kind is yaml.AliasEvent:
            self._refuse(event, f"the alias *{event.anchor} is refused", "write the value out")
        elif kind is yaml.DocumentStartEvent:
            self._documents += 1
            if self._documents > 1:
                self._refuse(event, "a second document begins", "one document a file: remove ---")

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        self._check(event)
        top = self._stack[-1] if self._stack else None
        if top is not None and type(top[0]) is dict and top[1] is None:
            key = event.value
            if key in top[0]:
                self._refuse(event, f"the key {key!r} is given twice", "keep one of the two")
            top[1] = key
            if self.lines is not None:
                self.lines[(*top[2], key)] = event.start_mark.line + 1
            return
        self._put(event, plain(event.value) if event.implicit[0] else event.value)

    def _open(self, event: Any, container: Any) -> None:
        self._check(event)
        if len(self._stack) >= MAX_DEPTH:
            self._refuse(event, f"is nested more than {MAX_DEPTH} levels deep", "flatten it")
        top = self._stack[-1] if self._stack else None
        if top is not None and type(top[0]) is dict and top[1] is None:
            self._refuse(event, "a key is a list or a mapping", "keys are plain words")
        path = self._put(event, container)
        self._stack.append([container, None, path])

    def _put(self, event: Any, value: Any) -> Path_:
        if not self._stack:
            self.root = value
            return ()
        top = self._stack[-1]
        holder = top[0]
        if type(holder) is dict:
            key: Any = top[1]
            holder[key] = value
            top[1] = None
        else:
            key = len(holder)
            holder.append(value)
        if self.lines is None:
            return ()
        path = (*top[2], key)
        self.lines.setdefault(path, event.start_mark.line + 1)
        return path

    def _check(self, event: Any) -> None:
        if event.anchor is not None:
            fix = "write the value out where it is needed"
            self._refuse(event, f"the anchor &{event.anchor} is refused", fix)
        if event.tag is not None:
            self._refuse(event, f"the tag {event.tag} is refused", "plain values only")

    def _refuse(self, event: Any, what: str, fix: str) -> NoReturn:
        raise self.error(what, where=f"{self.where}, line {event.start_mark.line + 1}", fix=fix)
