"""Prompt templates: plain text with declared names, filled in one pass, with fences that content cannot close."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from importlib import resources

from tenet.errors import SettingsError

_NAME = re.compile(r"\{([a-z_]+)\}")
_BREAK = "\u200b"
# Whatever a chat template could take for a role, a turn, or a special token.
_SPECIAL = re.compile(
    r"<\|[^|<>\n]{1,40}\|>|<(?=/?s>)|<(?=/?(?:start|end)_of_turn>)|<(?=(?:unk|pad|bos|eos|mask)>)|\[(?=/?INST\])|<(?=</?SYS>>)"
    r"|<(?=｜)",
    re.IGNORECASE,
)


def load(package: str, name: str) -> str:
    """The text of a template that lies beside its module; one trailing newline is not part of it."""
    return resources.files(package).joinpath(name).read_text("utf-8").removesuffix("\n")


def names(template: str) -> set[str]:
    """The placeholders of a template."""
    return set(_NAME.findall(template))


def fill(template: str, **values: str) -> str:
    """The template with every placeholder replaced, in one pass: braces in a value are only text.

    Raises SettingsError if the template's names and the values' names are not the same set.
    """
    wanted = names(template)
    if wanted != values.keys():
        odd = ", ".join(sorted(wanted ^ values.keys()))
        raise SettingsError(f"the template and its values differ in: {odd}", fix="use exactly the declared names")
    return _NAME.sub(lambda m: values[m[1]], template)


def tags_of(template: str) -> set[str]:
    """The names of the fences (`<reply_a> … </reply_a>`) that a template opens."""
    return set(re.findall(r"<([a-z_]+)>", template))


def fence_safe(text: str, tags: Iterable[str]) -> str:
    """The text with a zero-width space inside anything that looks like one of the fences' tags, open or closing.

    The words stay readable, but the fence that encloses them cannot be closed or opened from within. Look-alikes
    count: other brackets, full-width and Cyrillic letters, characters of no width in between.
    """
    if not _OPENS.search(text):
        return text
    shape, places = _skeleton(text)
    pattern = r"<(?=\s*/?\s*(?:" + "|".join(sorted(map(re.escape, tags))) + r")(?![a-z0-9_]))"
    cuts = [places[m.start()] + 1 for m in re.finditer(pattern, shape)]
    return _BREAK.join(text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True))


_OPENS = re.compile("[<＜﹤‹〈⟨❮˂ᐸᚲ]")
# Of what NFKD leaves different: brackets, slashes, Cyrillic and Greek letters, low lines.
_LOOKS = str.maketrans("‹〈⟨❮˂ᐸᚲ⁄∕╱⧸аеорсухіѕјԁһӏαεονρτυıɑɡᴀʀ‗ˍ", "<<<<<<<////aeopcyxisjdhlaeovptyiagar__")
_UNSEEN = ("Cf", "Mn", "Me", "Cc")


_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")


def _skeleton(text: str) -> tuple[str, Sequence[int]]:
    """What a text looks like, in lower case, and where in the text each of its characters stands."""
    if text.isascii() and not _CONTROLS.search(text):
        return text.lower(), range(len(text))
    shape: list[str] = []
    places: list[int] = []
    for i, c in enumerate(text):
        if c.isascii():
            seen = c.lower() if c.isprintable() or c.isspace() else ""
        else:
            parts = unicodedata.normalize("NFKD", c).casefold().translate(_LOOKS)
            seen = "".join(x for x in parts if unicodedata.category(x) not in _UNSEEN)
        shape.append(seen)
        places += [i] * len(seen)
    return "".join(shape), places


def role_safe(text: str, specials: Iterable[str] = ()) -> str:
    """The text with a zero-width space inside anything that a chat template could take for a special token.

    `specials` are a tokenizer's own special tokens; well-known shapes (`<|im_end|>`, `[INST]`, `</s>`, …) are always
    covered.
    """
    for token in specials:
        if len(token) > 1 and token in text:
            text = text.replace(token, token[0] + _BREAK + token[1:])
    return _SPECIAL.sub(lambda m: m[0][0] + _BREAK + m[0][1:], text)
