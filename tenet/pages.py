"""Reports: blocks with two faces, one self-contained HTML page and Markdown, and the folder that holds both."""

from __future__ import annotations

import base64
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

from tenet.worddiff import marked, pieces

_STYLE = """
:root { color-scheme: light }
body { font: 16px/1.55 system-ui, sans-serif; color: #1d2126; background: #fff; margin: 0 auto; padding: 2rem 1.25rem;
  max-width: 64rem }
h1 { font-size: 1.7rem; margin: 0 0 .25rem } h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem;
  border-top: 1px solid #d8dde3; padding-top: 1.25rem } h3 { font-size: 1rem; margin: 1.5rem 0 .4rem }
nav { margin: .75rem 0 0 } nav a { margin-right: .9rem; color: #1f5f8b; white-space: nowrap }
.scroll { overflow-x: auto } table { border-collapse: collapse; margin: .75rem 0; font-size: .9rem }
th, td { padding: .25rem .8rem .25rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #e6e9ed }
th { color: #545d68; font-weight: 600 } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums;
  white-space: nowrap }
figure { margin: 1rem 0 } figure img { max-width: 100%; height: auto; display: block }
figcaption, .note { color: #545d68; font-size: .875rem; max-width: 46rem }
article { border: 1px solid #d8dde3; border-radius: 6px; padding: .6rem .9rem; margin: .75rem 0 }
article h4 { margin: 0 0 .4rem; font-size: .9rem; overflow-wrap: anywhere }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: .85rem/1.45 ui-monospace, monospace; margin: 0;
  background: #f5f7f9; padding: .5rem .6rem; border-radius: 4px; max-height: 20rem; overflow-y: auto }
.tokens { line-height: 2.1; overflow-wrap: anywhere; font: .85rem/2.1 ui-monospace, monospace; white-space: pre-wrap;
  max-height: 24rem; overflow-y: auto }
.tokens span { padding: .12rem 0; border-radius: 2px } .tokens span.mark { outline: 2px solid #1d2126 }
del { background: #fbe1d3; color: #7d340c } ins { background: #d9efe0; color: #14532d; text-decoration: none }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: .6rem; margin-top: .5rem }
.sides h5, article h5 { margin: 0 0 .2rem; font-size: .8rem; color: #545d68 }
@media (max-width: 44rem) { .sides { grid-template-columns: 1fr } }
"""
_MARKS = str.maketrans({c: f"\\{c}" for c in "\\`*_{}[]<>()#+-.!|~&$"})


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    note: bool = False

    def html(self) -> str:
        return f"<p{' class=note' if self.note else ''}>{escape(self.text)}</p>"

    def markdown(self) -> str:
        return escaped(self.text)


@dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    text: str

    def html(self) -> str:
        return f"<h3>{escape(self.text)}</h3>"

    def markdown(self) -> str:
        return f"### {escaped(self.text)}"


@dataclass(frozen=True)
class Table:
    """Cells of text; all columns but the first `texts` hold numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1

    def html(self) -> str:
        def row(cells: Sequence[str], tag: str) -> str:
            marked = [("" if i < self.texts else ' class="n"', escape(c)) for i, c in enumerate(cells)]
            return "<tr>" + "".join(f"<{tag}{mark}>{cell}</{tag}>" for mark, cell in marked) + "</tr>"

        body = "".join(row(r, "td") for r in self.rows)
        return f'<div class="scroll"><table>{row(self.head, "th")}{body}</table></div>'

    def markdown(self) -> str:
        rule = ["---" if i < self.texts else "--:" for i in range(len(self.head))]
        lines = [[escaped(c) for c in self.head], rule, *([escaped(c) for c in row] for row in self.rows)]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


@dataclass(frozen=True)
class Plot:
    """An SVG drawing; the page holds it inside, Markdown points to `plots/<name>.svg`."""

    name: str
    svg: str
    caption: str

    def html(self) -> str:
        # As an image, so that nothing in the drawing can run.
        data = base64.b64encode(self.svg.encode()).decode()
        alt = escape(self.caption, quote=True)
        image = f'<img alt="{alt}" src="data:image/svg+xml;base64,{data}">'
        return f"<figure>{image}<figcaption>{escape(self.caption)}</figcaption></figure>"

    def markdown(self) -> str:
        return f"![{escaped(self.caption)}](plots/{quote(self.name)}.svg)"


@dataclass(frozen=True)
class Case:
    """One item with its texts, shown as text whatever they contain."""

    title: str
    facts: str
    prompt: str | None = None
    a: str = ""
    b: str = ""

    def html(self) -> str:
        head = f"<h4>{escape(self.title)}</h4><div class=note>{escape(self.facts)}</div>"
        if self.prompt is None:
            return f"<article>{head}</article>"
        sides = "".join(f"<div><h5>{k}</h5><pre>{escape(t)}</pre></div>" for k, t in (("A", self.a), ("B", self.b)))
        return (
            f'<article>{head}<h5>Prompt</h5><pre>{escape(self.prompt)}</pre><div class="sides">{sides}</div></article>'
        )

    def markdown(self) -> str:
        parts = [f"**{escaped(self.title)}**  \n{escaped(self.facts)}"]
        if self.prompt is not None:
            parts += [f"{k}:\n\n{fenced(t)}" for k, t in (("Prompt", self.prompt), ("A", self.a), ("B", self.b))]
        return "\n\n".join(parts)


@dataclass(frozen=True)
class Tokens:
    """A text piece by piece, each shaded by a value of -1 (blue) to 1 (orange); `tips` show on hovering."""

    pieces: Sequence[str]
    shades: Sequence[float]
    tips: Sequence[str]
    marked: int | None = None
    """The piece with a frame around it."""

    def html(self) -> str:
        spans: list[str] = []
        for i, (piece, shade, tip) in enumerate(zip(self.pieces, self.shades, self.tips, strict=True)):
            rgb = "217,119,54" if shade > 0 else "52,120,184"
            alpha = min(abs(shade), 1.0) if math.isfinite(shade) else 1.0
            mark = " class=mark" if i == self.marked else ""
            spans.append(
                f'<span{mark} style="background:rgba({rgb},{alpha:.2f})" title="{escape(tip, quote=True)}">'
                f"{escape(piece)}</span>"
            )
        return f"<div class=tokens>{''.join(spans)}</div>"

    def markdown(self) -> str:
        return fenced("".join(self.pieces))


@dataclass(frozen=True)
class Texts:
    """Texts under names, side by side, shown as text whatever they contain."""

    title: str
    named: Sequence[tuple[str, str]]

    def html(self) -> str:
        sides = "".join(f"<div><h5>{escape(name)}</h5><pre>{escape(text)}</pre></div>" for name, text in self.named)
        return f'<article><h4>{escape(self.title)}</h4><div class="sides">{sides}</div></article>'

    def markdown(self) -> str:
        parts = [f"**{escaped(self.title)}**", *(f"{escaped(n)}:\n\n{fenced(t)}" for n, t in self.named)]
        return "\n\n".join(parts)


@dataclass(frozen=True)
class Words:
    """What changed between two texts, word by word; `facts` stand above it."""

    title: str
    old: str
    new: str
    facts: str = ""

    def html(self) -> str:
        tags = {"same": "{}", "out": "<del>{}</del>", "in": "<ins>{}</ins>"}
        said = "".join(tags[p.op].format(escape(p.text)) for p in pieces(self.old, self.new))
        facts = f"<div class=note>{escape(self.facts)}</div>" if self.facts else ""
        return f"<article><h4>{escape(self.title)}</h4>{facts}<pre>{said}</pre></article>"

    def markdown(self) -> str:
        facts = f"  \n{escaped(self.facts)}" if self.facts else ""
        return f"**{escaped(self.title)}**{facts}\n\n{fenced(marked(self.old, self.new))}"


Block = Text | Heading | Table | Plot | Case | Tokens | Texts | Words


@dataclass(frozen=True)
class Section:
    """A titled run of blocks."""

    title: str
    blocks: tuple[Block, ...]

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")


def save(folder: Path, title: str, lead: Sequence[Block], sections: Sequence[Section]) -> tuple[Path, Path]:
    """Writes `report.html`, `report.md` and `plots/` into a folder; returns the first two."""
    plots = folder / "plots"
    shutil.rmtree(plots, ignore_errors=True)  # drawings of an earlier report would lie beside the new ones
    plots.mkdir(parents=True)
    for block in (block for section in sections for block in section.blocks):
        if isinstance(block, Plot):
            (plots / f"{block.name}.svg").write_text(block.svg, encoding="utf-8")
    made = (folder / "report.html", folder / "report.md")
    for path, text in zip(made, (page(title, lead, sections), document(title, lead, sections)), strict=True):
        path.write_text(text, encoding="utf-8", newline="\n")
    return made


def page(title: str, lead: Sequence[Block], sections: Sequence[Section]) -> str:
    """One HTML page that needs nothing from outside."""
    links = "".join(f'<a href="#{escape(s.anchor, quote=True)}">{escape(s.title)}</a> ' for s in sections)
    parts = [f"<h1>{escape(title)}</h1>", *(b.html() for b in lead), f"<nav>{links}</nav>"]
    for s in sections:
        parts += [f'<h2 id="{escape(s.anchor, quote=True)}">{escape(s.title)}</h2>', *(b.html() for b in s.blocks)]
    csp = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{csp}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
    )
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def document(title: str, lead: Sequence[Block], sections: Sequence[Section]) -> str:
    """The same parts as Markdown."""
    parts = [f"# {escaped(title)}", *(b.markdown() for b in lead)]
    for s in sections:
        parts += [f"## {escaped(s.title)}", *(b.markdown() for b in s.blocks)]
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return " ".join(text.translate(_MARKS).split())


def fenced(text: str) -> str:
    """Text in a code fence that is longer than any run of backticks inside it."""
    longest = max((len(run) for run in _runs(text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _runs(text: str) -> list[str]:
    return [run for run in "".join(c if c == "`" else " " for c in text).split() if run]
