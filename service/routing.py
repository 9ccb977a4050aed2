"""`tenet inspect routing`: which experts of a model do what, and what a training changed in that."""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from service.screen import console
from tenet import pages
from tenet.errors import SettingsError
from trainers import _common
from trainers.moe import _routing_page as page
from trainers.moe import _texts, routing
from trainers.moe._hooks import layers


def main(model: str, data: Path, other: str | None, out: Path, length: int, limit: int) -> dict[str, Any]:
    """Writes report.html, report.md, plots/ and routing.json into `out`; returns the figures."""
    with _common.quiet():
        folder = _common.locate(model)
        tok = _common.tokenizer_of(folder, chat=False)
        opened = _opened(folder, tok, model)
        second = None
        if other is not None:
            second = _common.locate(other)
            if _common.tokenizer_of(second, chat=False).get_vocab() != tok.get_vocab():
                what = f"{other} has another tokenizer"
                raise SettingsError(what, where="--compare", fix="two models of one tokenizer")
        rows = _texts.read(data, tok, length, limit, _topic)
        figures: dict[str, Any] = {"model": model, "data": data.name, **routing.measure(opened, rows)}
        compared = None
        if second is not None and other is not None:
            compared = routing.compare(opened, _opened(second, tok, other), rows)
        figures |= {"compared_with": other, "comparison": compared}
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(figures, indent=1, ensure_ascii=False, allow_nan=False)
    (out / "routing.json").write_text(text + "\n", encoding="utf-8")
    made, _ = pages.save(
        out, f"Routing: {model}", page.lead(figures), page.sections(figures, compared, (model, other or ""))
    )
    _show(figures, compared)
    console.print(f"report: {escape(str(made))}; report.md, plots and routing.json beside it")
    return figures


def _opened(folder: Path, tok: Any, name: str) -> Any:
    loaded = _common.load(folder, tok)
    layers(loaded, name)  # refuses a dense model before anything is read
    return loaded.eval()


def _topic(text: str) -> str | None:
    """What a text of nano's world is about; None for all others."""
    from nano import world
    from nano.lexicon import TOPICS

    found = world.topic_of(text)
    return None if found is None else TOPICS[found][0]


def _show(figures: dict[str, Any], compared: list[dict[str, Any]] | None) -> None:
    shown = Table(box=None)
    heads = ["layer", "load entropy", "max / mean", "dead", "cosine", "by class", "by topic"]
    for head in heads + (["dropped", "KL"] if compared else []):
        shown.add_column(head, justify="left" if head == "layer" else "right")
    for i, y in enumerate(figures["layers"]):
        row = [
            page.brief(y["name"]), f"{y['load_entropy']:.3f}", f"{y['max_load']:.2f}", str(len(y["dead"])),
            f"{y['similarity']:.3f}", _above(y["specialisation"]["class"]), _above(y["specialisation"]["topic"]),
        ]  # fmt: skip
        if compared:
            row += [f"{compared[i]['dropped']:.3f}", f"{compared[i]['kl']:.4f}"]
        shown.add_row(*row)
    console.print(shown)
    console.print("by class, by topic: share of the experts' entropy that they tell, less what shuffled labels tell")


def _above(found: dict[str, Any] | None) -> str:
    return "–" if found is None or found["share"] is None else f"{found['share'] - found['chance']:.4f}"
