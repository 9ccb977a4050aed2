"""Probe "prompt": one prompt through the stages, with what each stage expects of every reply, token by token."""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from tenet.drawings import short
from tenet.errors import SettingsError
from tenet.pages import Block, Heading, Section, Table, Text, Texts, Tokens
from tenet.records import Frozen
from trainers.probes._checkpoint import Stage
from trainers.probes._models import Coded, Loaded, same_tokens
from trainers.probes._numbers import number
from trainers.probes._outputs import divergence
from trainers.probes._texts import Sample

if TYPE_CHECKING:
    import torch

SHOWN = 8
"""Places where two stages part most, listed for each reply."""
_NATS = 3.0
"""Change of log-probability, and KL, that is shaded fully."""
RULES = {
    "log-probability": "natural logarithm of the probability that a stage gives a reply's token after what precedes it",
    "kl": "KL(before || after) of the next-token distributions, in nats, at the same place of the same reply",
    "parts_at": "first token of the reply at which the two stages hold different tokens the most likely",
    "same_for": "tokens that the two stages' own replies have in common from the start",
}


class Settings(Frozen):
    """How the replies are drawn."""

    max_tokens: Annotated[int, Field(ge=1)] = 200
    """Longest reply, in tokens."""
    temperature: Annotated[float, Field(ge=0, le=5)] = 0.0
    """0 is greedy, which shows a stage's own first choice."""
    seed: int = 0


def walk(
    stages: Sequence[Stage], sample: Sample, settings: Settings, device: str = "cpu",
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """The reply of each stage, each reply's log-probability under every stage, and the KL of each step.

    One model is in memory at a time, and one stage's distributions over all replies. Where stages have different
    tokenizers, only the replies can be compared.
    """
    if len({s.name for s in stages}) < len(stages) or not stages:
        raise SettingsError("each stage wants a name of its own", where="stages", fix="name each once")
    replies: list[dict[str, Any]] = []
    first: Loaded | None = None
    alike = True
    for stage in stages:
        progress(f"{stage.name} replies")
        loaded = Loaded(stage, device)
        ids = loaded.reply_ids([sample], settings.max_tokens, settings.temperature, settings.seed)[0]
        alike = alike and (first is None or same_tokens(first, loaded))
        replies.append(
            {"stage": stage.name, "text": loaded.tokenizer.decode(ids), "ids": ids,
             "pieces": [loaded.tokenizer.decode([i]) for i in ids], "templated": loaded.templated}
        )  # fmt: skip
        first = first or loaded
        loaded.close()
    found: dict[str, Any] = {
        "probe": "prompt", "rules": RULES, "settings": settings.model_dump(),
        "prompt": [m.model_dump() for m in sample.messages], "stages": [s.name for s in stages],
        "replies": replies, "steps": [_step(a, b) for a, b in pairwise(replies)],
    }  # fmt: skip
    if alike:
        _score(stages, sample, replies, device, progress)
        found["scored"] = True
    else:
        found |= {"scored": False, "why": "the stages' tokenizers differ, so one reply is other tokens to each"}
    return found


def _step(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    same = next((i for i, (x, y) in enumerate(zip(a["ids"], b["ids"], strict=False)) if x != y), None)
    return {
        "before": a["stage"], "after": b["stage"], "identical": a["ids"] == b["ids"],
        "same_for": min(len(a["ids"]), len(b["ids"])) if same is None else same,
    }  # fmt: skip


def _score(
    stages: Sequence[Stage], sample: Sample, replies: list[dict[str, Any]], device: str, progress: Callable[[str], None]
) -> None:
    """Adds to each reply every stage's log-probabilities, and each step's KL and parting place."""
    last: list[torch.Tensor] | None = None
    for reply in replies:
        reply |= {"logprobs": {}, "steps": []}
    for i, stage in enumerate(stages):
        progress(f"{stage.name} reads the replies")
        loaded = Loaded(stage, device)
        before = loaded.prompt_ids(sample)
        written = [r for r in replies if r["ids"]]
        coded = [Coded([*before, *r["ids"]], len(before)) for r in written]
        now = list(loaded.distributions(coded))
        for k, (reply, p) in enumerate(zip(written, now, strict=True)):
            chosen = [float(row[t]) for row, t in zip(p, reply["ids"], strict=True)]
            reply["logprobs"][stage.name] = chosen
            if last is not None:
                reply["steps"].append(_parting(loaded, stages[i - 1].name, stage.name, last[k], p, reply))
        last = now
        loaded.close()


def _parting(
    loaded: Loaded, before: str, after: str, p: torch.Tensor, q: torch.Tensor, reply: dict[str, Any]
) -> dict[str, Any]:
    kl = [float(x) for x in divergence(p, q)]
    first, then = p.argmax(dim=-1).tolist(), q.argmax(dim=-1).tolist()
    most = sorted(range(len(kl)), key=lambda i: -kl[i])[:SHOWN]
    return {
        "before": before, "after": after, "kl": kl, "mean_kl": sum(kl) / len(kl),
        "parts_at": next((i for i, (a, b) in enumerate(zip(first, then, strict=True)) if a != b), None),
        "places": [
            {"at": i, "token": reply["pieces"][i], "kl": kl[i],
             "before": _top(loaded, p[i]), "after": _top(loaded, q[i])}
            for i in most
        ],
    }  # fmt: skip


def _top(loaded: Loaded, row: torch.Tensor) -> list[tuple[str, float]]:
    values, ids = row.exp().topk(min(3, len(row)))
    return [(loaded.tokenizer.decode([i]), float(v)) for v, i in zip(values.tolist(), ids.tolist(), strict=True)]


def sections(f: dict[str, Any]) -> list[Section]:
    """The replies side by side, their scores, and where each step parts."""
    blocks: list[Block] = [Texts("The prompt", [(m["role"], m["content"]) for m in f["prompt"]])]
    blocks.append(Texts("The replies", [(r["stage"], r["text"]) for r in f["replies"]]))
    plain = [r["stage"] for r in f["replies"] if not r["templated"]]
    if plain:
        blocks.append(Text(f"Without a chat template, so asked in plain text: {', '.join(plain)}.", note=True))
    rows = [[s["before"], s["after"], "yes" if s["identical"] else "no", number(s["same_for"])] for s in f["steps"]]
    blocks.append(Table(["before", "after", "same reply", "same tokens from the start"], rows, texts=3))
    made = [Section("Replies", tuple(blocks))]
    if not f["scored"]:
        return [*made, Section("Scores", (Text(f"No scores: {f['why']}."),)), _rules()]
    head = ["reply of", "tokens", *(f"under {s}" for s in f["stages"])]
    rows = [
        [r["stage"], number(len(r["ids"])), *(number(_sum(r["logprobs"].get(s)), 2) for s in f["stages"])]
        for r in f["replies"]
    ]
    note = Text("Log-probability of the whole reply, in nats; nearer to 0 is likelier.", note=True)
    made.append(Section("Scores", (Table(head, rows), note)))
    for i, step in enumerate(f["steps"]):
        parts: list[Block] = []
        for reply in f["replies"]:
            if reply["stage"] in (step["before"], step["after"]) and reply["ids"]:
                parts += _part(reply, step, reply["steps"][i])
        made.append(Section(f"{step['before']} to {step['after']}", tuple(parts or [Text("Both replies are empty.")])))
    return [*made, _rules()]


def _rules() -> Section:
    return Section("Rules", (Table(["figure", "rule"], [[k, v] for k, v in RULES.items()], texts=2),))


def _sum(values: list[float] | None) -> float | None:
    return None if values is None else sum(values)


def _part(reply: dict[str, Any], step: dict[str, Any], at: dict[str, Any]) -> list[Block]:
    old, new = reply["logprobs"][step["before"]], reply["logprobs"][step["after"]]
    change = [b - a for a, b in zip(old, new, strict=True)]
    tips = [f"log-probability {a:.2f} to {b:.2f}; KL {k:.3f}" for a, b, k in zip(old, new, at["kl"], strict=True)]
    parts = at["parts_at"]
    where = "nowhere" if parts is None else f"at token {parts + 1}, {reply['pieces'][parts]!r}"
    rows = [
        [f"{p['at'] + 1}", repr(p["token"]), number(p["kl"]), number(old[p["at"]], 2), number(new[p["at"]], 2),
         _alternatives(p["before"]), _alternatives(p["after"])]
        for p in at["places"]
    ]  # fmt: skip
    return [
        Heading(f"On the reply of {reply['stage']}"),
        Text(f"Mean KL {number(at['mean_kl'])} nats a token; first choices part {where}"
             f"{'' if parts is None else ', which has a frame'}.", note=True),
        Text("Log-probability of each token: blue fell, orange rose.", note=True),
        Tokens(reply["pieces"], [c / _NATS for c in change], tips, parts),
        Text("KL at each token:", note=True),
        Tokens(reply["pieces"], [k / _NATS for k in at["kl"]], tips, parts),
        Table(["token", "written", "KL", "before", "after", "likeliest before", "likeliest after"], rows, texts=2),
    ]  # fmt: skip


def _alternatives(top: list[tuple[str, float]]) -> str:
    return ", ".join(f"{piece!r} {p:.2f}" for piece, p in top)


def sparks(values: Sequence[float], most: float = _NATS) -> str:
    """A line of bars, one for each value from 0 to `most`, for a terminal."""
    bars = " ▁▂▃▄▅▆▇█"
    return "".join(bars[min(8, round(8 * max(0.0, v) / most))] for v in values)


def screen(f: dict[str, Any]) -> list[str]:
    """The probe as lines for a terminal."""
    lines: list[str] = []
    for reply in f["replies"]:
        lines += [f"--- {reply['stage']}", reply["text"]]
        for step in reply.get("steps", []):
            if reply["stage"] in (step["before"], step["after"]):
                parts = step["parts_at"]
                where = "nowhere" if parts is None else f"at token {parts + 1} {reply['pieces'][parts]!r}"
                name = f"{short(step['before'])} to {short(step['after'])}"
                lines.append(f"    {name}: mean KL {number(step['mean_kl'])}, first choices part {where}")
                lines.append(f"    KL {sparks(step['kl'])}")
    if not f["scored"]:
        lines.append(f"No scores: {f['why']}.")
    return lines
