"""Probe "style": whether replies all sound alike: openings, repeats, boilerplate, length, likeness to one another."""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
import random
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Annotated, Any

from pydantic import Field

from tenet.errors import DataError
from tenet.pages import Block, Section, Table, Text
from tenet.records import Frozen
from trainers.probes._numbers import number, percent, spread
from trainers.probes._stats import SMALL, weighted

SHOWN = 12
_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
RULES = {
    "openings": "the first words of a reply in lower case; entropy in bits over the distinct openings, and over the "
    "entropy of all openings different (0: all alike, 1: none alike)",
    "distinct": "different n-grams over all n-grams of the words, on the first words of the replies in a fixed order, "
    "as many as `distinct_words`, since the figure falls with the size of the text",
    "repeated": "share of replies in which some 4-gram of words comes twice",
    "boilerplate": "share of all words that stand in sentences found in several replies to different prompts",
    "length": "words of a reply; drift is the ratio of mean lengths with a 95% bootstrap interval",
    "self_similarity": "mean cosine of two replies' TF-IDF vectors of words and word pairs, over all pairs",
}


class Settings(Frozen):
    """What counts as what, and from where on it is worth a warning."""

    opening_words: Annotated[int, Field(ge=1, le=20)] = 3
    """Words that make an opening."""
    distinct_words: Annotated[int, Field(ge=10)] = 5000
    """Words on which distinct-n is computed."""
    boilerplate_share: Annotated[float, Field(gt=0, le=1)] = 0.02
    """Share of the prompts to which a sentence must be said to be boilerplate (and at least `boilerplate_least`)."""
    boilerplate_least: Annotated[int, Field(ge=2)] = 3
    sample: Annotated[int, Field(ge=10)] = 5000
    """Replies looked at, drawn by the seed where there are more."""
    seed: int = 0
    most_common_opening: float = 0.2
    """Warn if one opening begins more than this share of replies."""
    least_opening_entropy: float = 0.5
    """Warn if the openings' entropy, of the highest it could be, is below."""
    most_boilerplate: float = 0.3
    """Warn if boilerplate is more than this share of the words."""
    most_repeated: float = 0.1
    """Warn if more replies than this repeat a 4-gram."""
    most_drift: float = 1.3
    """Warn if replies are longer (or shorter) than the earlier ones by more than this factor."""
    most_similarity: float = 0.5
    """Warn if two replies are on average more alike than this."""


class Reply(Frozen):
    """A reply, what it answers, and its revision round if it has one."""

    text: str
    prompt: str = ""
    round: int | None = None


def measure(
    replies: Sequence[Reply], settings: Settings | None = None, earlier: Sequence[Reply] | None = None
) -> dict[str, Any]:
    """All figures of the replies, with warnings; `earlier` replies (before training, first drafts) set the drift.

    DataError if there are no replies with words. Fewer than 30 replies are marked as few, and give no warnings.
    """
    settings = settings or Settings()
    drawn, empty = _drawn(replies, settings)
    if not drawn:
        raise DataError("none of the replies has a word", fix="rows with a completion, a chosen reply, or a text")
    words = [_WORD.findall(r.text.lower()) for r in drawn]
    found: dict[str, Any] = {
        "probe": "style", "settings": settings.model_dump(), "rules": RULES, "replies": len(drawn), "of": len(replies),
        "empty": empty, "few": len(drawn) < SMALL,
        "openings": _openings(words, settings.opening_words),
        "distinct": {str(n): _distinct(words, n, settings.distinct_words) for n in (1, 2, 3)},
        "repeated": _repeated(words),
        "boilerplate": _boilerplate(drawn, settings),
        "length": _length(drawn, words, earlier),
        "self_similarity": _similarity(drawn),
    }  # fmt: skip
    found["warnings"] = [] if found["few"] else warnings(found, settings)
    return found


def foreseen(rows: Iterable[dict[str, Any]], settings: Settings | None = None) -> list[str]:
    """What a model would learn to say everywhere from rows of shape "replies": the warnings, before it is trained.

    Every turn of the assistant counts as a reply. DataError where the rows give one. Of many replies a draw by the
    seed is looked at, so that memory follows `settings.sample` and not the file.
    """
    settings = settings or Settings()
    rng, kept = random.Random(settings.seed), list[Reply]()
    for seen, reply in enumerate((r for row in rows for r in _turns(row) if _WORD.search(r.text)), 1):
        # Algorithm R (Vitter 1985): each reply stays with the same chance.
        if len(kept) < settings.sample:
            kept.append(reply)
        elif (place := rng.randrange(seen)) < settings.sample:
            kept[place] = reply
    return measure(kept, settings)["warnings"] if kept else []


def _turns(row: dict[str, Any]) -> Iterable[Reply]:
    if "completion" in row and isinstance(row["completion"], str):
        yield Reply(text=row["completion"], prompt=row["prompt"])
        return
    asked: list[str] = []
    for turn in row.get("messages") or [*row["prompt"], *row["completion"]]:
        if turn["role"] == "assistant":
            yield Reply(text=turn["content"], prompt="\n\n".join(asked))
        else:
            asked.append(turn["content"])


def _drawn(replies: Sequence[Reply], settings: Settings) -> tuple[list[Reply], int]:
    spoken = [r for r in replies if _WORD.search(r.text)]
    empty = len(replies) - len(spoken)
    if len(spoken) > settings.sample:
        spoken = random.Random(settings.seed).sample(spoken, settings.sample)
    return spoken, empty


def _entropy(counts: Iterable[int]) -> float:
    listed = list(counts)
    total = sum(listed)
    return sum(c / total * math.log2(total / c) for c in listed)


def _openings(words: Sequence[Sequence[str]], k: int) -> dict[str, Any]:
    counts = Counter(" ".join(w[:k]) for w in words)
    n, bits = len(words), _entropy(counts.values())
    top = [{"opening": o, "n": c, "share": c / n} for o, c in counts.most_common(SHOWN) if c > 1]
    made: dict[str, Any] = {"words": k, "different": len(counts), "bits": bits, "top": top}
    made["top_share"] = counts.most_common(1)[0][1] / n
    if n < 2:
        return {**made, "evenness": None, "why": "evenness: one reply has nothing to be unlike"}
    return {**made, "evenness": bits / math.log2(n)}


def _grams(words: Sequence[str], n: int) -> Iterable[tuple[str, ...]]:
    return zip(*(words[i:] for i in range(n)), strict=False)


def _distinct(words: Sequence[Sequence[str]], n: int, most: int) -> dict[str, Any]:
    left, seen, total = most, set[tuple[str, ...]](), 0
    for reply in words:
        cut = reply[:left]
        left -= len(cut)
        for gram in _grams(cut, n):
            seen.add(gram)
            total += 1
    if not total:
        return {"value": None, "n": 0, "why": f"no reply has {n} words"}
    return {"value": len(seen) / total, "n": total}


def _repeated(words: Sequence[Sequence[str]]) -> dict[str, Any]:
    looping, across = 0, Counter[tuple[str, ...]]()
    for reply in words:
        counts = Counter(_grams(reply, 4))
        looping += any(c > 1 for c in counts.values())
        across.update(counts.keys())
    common = [{"words": " ".join(g), "replies": c, "share": c / len(words)} for g, c in across.most_common(SHOWN)
              if c > 1]  # fmt: skip
    return {"within": looping / len(words), "across": common}


def _sentences(text: str) -> list[str]:
    return [s for s in (" ".join(_WORD.findall(p.lower())) for p in _SENTENCE.split(text)) if s]


def _boilerplate(replies: Sequence[Reply], settings: Settings) -> dict[str, Any]:
    """Sentences said to many prompts, and the share of the words that they make up."""
    said: dict[str, set[str]] = {}
    for i, reply in enumerate(replies):
        for sentence in _sentences(reply.text):
            # Without prompts every reply counts as one to a prompt of its own.
            said.setdefault(sentence, set()).add(reply.prompt or f"#{i}")
    prompts = len({r.prompt or f"#{i}" for i, r in enumerate(replies)})
    least = max(settings.boilerplate_least, math.ceil(settings.boilerplate_share * prompts))
    often = {s: len(p) for s, p in said.items() if len(p) >= least}
    size = total = 0
    for reply in replies:
        for sentence in _sentences(reply.text):
            n = len(sentence.split())
            total += n
            size += n if sentence in often else 0
    ranked = sorted(often.items(), key=lambda item: (-item[1], item[0]))
    top = [{"sentence": s, "prompts": n, "share": n / prompts} for s, n in ranked[:SHOWN]]
    return {"share": size / total, "sentences": len(often), "prompts": prompts, "least": least, "top": top}


def _length(
    replies: Sequence[Reply], words: Sequence[Sequence[str]], earlier: Sequence[Reply] | None
) -> dict[str, Any]:
    sizes = [len(w) for w in words]
    ordered = sorted(sizes)
    made: dict[str, Any] = {
        "mean": statistics.fmean(sizes), "median": statistics.median(sizes),
        "p95": ordered[min(len(ordered) - 1, math.ceil(0.95 * len(ordered)) - 1)],
    }  # fmt: skip
    rounds = sorted({r.round for r in replies if r.round is not None})
    made["by_round"] = {str(k): statistics.fmean(n for n, r in zip(sizes, replies, strict=True) if r.round == k)
                        for k in rounds}  # fmt: skip
    if earlier is None:
        return {**made, "drift": {"value": None, "low": None, "high": None, "why": "there are no earlier replies"}}
    before = [len(_WORD.findall(r.text)) for r in earlier]
    return {**made, "drift": _drift(before, sizes)}


def _drift(before: Sequence[int], after: Sequence[int]) -> dict[str, Any]:
    """Ratio of mean lengths; item by item where both sides answer the same prompts in order."""
    if not sum(before):
        return {"value": None, "low": None, "high": None, "why": "the earlier replies have no words"}
    if len(before) == len(after):
        return {**weighted(after, before), "paired": True}
    from scipy.stats import bootstrap

    def ratio(x: Any, y: Any, axis: int = -1) -> Any:
        return y.mean(axis=axis) / x.mean(axis=axis)

    value = statistics.fmean(after) / statistics.fmean(before)
    if min(len(before), len(after)) < 2 or len(set(before)) == 1 or len(set(after)) == 1:
        return {"value": value, "low": None, "high": None, "paired": False, "why": "low, high: too few or all alike"}
    found: Any = bootstrap((before, after), ratio, vectorized=True, n_resamples=1000, method="percentile", rng=0)
    ends = found.confidence_interval
    return {"value": value, "low": float(ends.low), "high": float(ends.high), "paired": False}


def _similarity(replies: Sequence[Reply]) -> dict[str, Any]:
    """Mean cosine over all pairs; from the sum of all vectors, so it costs no pairs."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    n = len(replies)
    if n < 2:
        return {"value": None, "why": "one reply has none to be like"}
    model: Any = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\w+")  # nosec B106 # no secret
    try:
        vectors = model.fit_transform([r.text for r in replies])
    except ValueError:
        return {"value": None, "why": "the replies hold no words"}
    total = vectors.sum(axis=0)
    spoken = float(vectors.multiply(vectors).sum())  # rows have length 1, or 0 where a reply has only signs
    return {"value": (float((total @ total.T).item()) - spoken) / (n * (n - 1)), "pairs": n * (n - 1) // 2}


def warnings(found: dict[str, Any], settings: Settings) -> list[str]:
    """What is beyond the settings' bounds, each with the texts that make it so."""
    said: list[str] = []
    openings, boilerplate, drift = found["openings"], found["boilerplate"], found["length"]["drift"]["value"]
    listed = ", ".join(f"{o['opening']!r} {o['share']:.0%}" for o in openings["top"][:5])
    if openings["top_share"] > settings.most_common_opening:
        said.append(f"one opening begins {openings['top_share']:.0%} of the replies: {listed}")
    if openings["evenness"] is not None and openings["evenness"] < settings.least_opening_entropy:
        said.append(f"openings are few: entropy {openings['evenness']:.2f} of the highest possible; {listed}")
    if boilerplate["share"] > settings.most_boilerplate:
        top = "; ".join(f"{s['sentence']!r} to {s['share']:.0%} of prompts" for s in boilerplate["top"][:3])
        said.append(f"{boilerplate['share']:.0%} of the words are boilerplate: {top}")
    if found["repeated"]["within"] > settings.most_repeated:
        said.append(f"{found['repeated']['within']:.0%} of the replies repeat themselves (a 4-gram twice)")
    if drift is not None and not 1 / settings.most_drift <= drift <= settings.most_drift:
        said.append(f"replies are {drift:.2f} times as long as the earlier ones")
    alike = found["self_similarity"]["value"]
    if alike is not None and alike > settings.most_similarity:
        said.append(f"two replies have a mean likeness of {alike:.2f}")
    return said


def sections(parts: dict[str, dict[str, Any]]) -> list[Section]:
    """The figures of one or more sets of replies beside each other, then what each says most."""
    rows: list[list[str]] = []
    for name, read in _ROWS:
        rows.append([name, *(read(f) for f in parts.values())])
    blocks: list[Block] = [Table(["", *parts], rows)]
    for name, f in parts.items():
        blocks += [Text(f"Warning, {name}: {w}.") for w in f["warnings"]]
        if f["few"]:
            blocks.append(Text(f"{name} has fewer than {SMALL} replies: too few to warn of anything.", note=True))
    made = [Section("Figures", tuple(blocks))]
    for name, f in parts.items():
        made.append(Section(f"Most said: {name}", tuple(_most(f))))
    rules = Table(["figure", "rule"], [[k.replace("_", " "), v] for k, v in RULES.items()], texts=2)
    return [*made, Section("Rules", (rules,))]


_ROWS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("replies", lambda f: number(f["replies"])),
    ("different openings", lambda f: number(f["openings"]["different"])),
    ("commonest opening", lambda f: percent(f["openings"]["top_share"])),
    ("openings' entropy, bits", lambda f: number(f["openings"]["bits"], 2)),
    ("of the highest possible", lambda f: number(f["openings"]["evenness"], 2)),
    ("distinct-1", lambda f: number(f["distinct"]["1"]["value"])),
    ("distinct-2", lambda f: number(f["distinct"]["2"]["value"])),
    ("distinct-3", lambda f: number(f["distinct"]["3"]["value"])),
    ("replies that repeat a 4-gram", lambda f: percent(f["repeated"]["within"])),
    ("boilerplate, share of words", lambda f: percent(f["boilerplate"]["share"])),
    ("mean length, words", lambda f: number(f["length"]["mean"], 1)),
    ("length over earlier replies", lambda f: spread(f["length"]["drift"], 2)),
    ("mean likeness of two replies", lambda f: number(f["self_similarity"]["value"])),
)


def _most(f: dict[str, Any]) -> list[Block]:
    def table(head: Sequence[str], rows: Iterable[Sequence[str]], none: str) -> Block:
        listed = list(islice(rows, SHOWN))
        return Table(head, listed) if listed else Text(none)

    openings = ([o["opening"], number(o["n"]), percent(o["share"])] for o in f["openings"]["top"])
    sentences = ([s["sentence"], number(s["prompts"]), percent(s["share"])] for s in f["boilerplate"]["top"])
    grams = ([g["words"], number(g["replies"]), percent(g["share"])] for g in f["repeated"]["across"])
    least = f["boilerplate"]["least"]
    made = [
        table(["opening", "replies", "share"], openings, "No opening comes twice."),
        table([f"sentence said to {least} prompts or more", "prompts", "share"], sentences, "No sentence does."),
        table(["four words", "replies", "share"], grams, "No four words come in two replies."),
    ]
    rounds = f["length"]["by_round"]
    if len(rounds) > 1:
        made.append(Table(["round", "mean length, words"], [[k, number(v, 1)] for k, v in rounds.items()]))
    return made


def screen(parts: dict[str, dict[str, Any]]) -> list[str]:
    """The figures as lines for a terminal, warnings last."""
    width = max(len(name) for name, _ in _ROWS)
    lines = ["  ".join([" " * width, *(f"{name[-24:]:>24}" for name in parts)])]
    lines += ["  ".join([f"{name:{width}}", *(f"{read(f):>24}" for f in parts.values())]) for name, read in _ROWS]
    return lines + [f"warning: {name}: {w}" for name, f in parts.items() for w in f["warnings"]]
