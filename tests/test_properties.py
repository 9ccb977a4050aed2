"""Properties of records, templates, draws and of how a judge's words are read, for made-up values."""

from __future__ import annotations

import json
import re
from typing import Any

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from constitution import Principle
from constitution.draw import draw
from judges import _parse, _render
from tenet.engines import Request, Sampling
from tenet.records import (
    Candidate,
    Comparison,
    Critique,
    Dropped,
    Member,
    Message,
    Preference,
    Prompt,
    Response,
    Revision,
    Usage,
    Verdict,
    Vote,
    canonical,
    digest,
)
from tenet.templates import fence_safe, fill, names, role_safe, tags_of

# The same examples in every run and on every machine. A failure is not made smaller: that takes minutes where a single
# example takes a second.
few = settings(derandomize=True, database=None, deadline=None, max_examples=40, phases=[Phase.explicit, Phase.generate])

LABELS = ("A", "B", "tie", "invalid", "refused")
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
words = st.text("abc{}<>/|_ \n\"'[]é\u200b", max_size=20) | text
half = st.integers(0, 64).map(lambda n: n / 64)  # 1 - p is exact, so a flip and back is the same to the bit
maybe_half = st.none() | half


def lists(of: st.SearchStrategy[Any], most: int = 3) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(of, max_size=most).map(tuple)


messages = st.builds(Message, role=st.sampled_from(["system", "user", "assistant"]), content=words)
prompt = st.builds(Prompt, messages=lists(messages), copy_index=st.integers(0, 3), tags=lists(text), name=text)
comparison = st.builds(Comparison, prompt=prompt, a=words, b=words, a_from=text, b_from=text)
usage = st.builds(Usage, calls=st.integers(0, 9), prompt_tokens=st.integers(0, 2**40))
vote = st.builds(
    Vote,
    principle=text,
    order=st.sampled_from(["ab", "ba", None]),
    label=st.sampled_from(LABELS),
    p_a=maybe_half,
    logprobs=st.none() | st.tuples(st.floats(-50, 0), st.floats(-50, 0)),
    scores=st.none() | st.tuples(maybe_half, maybe_half),
    rationale=words,
)
member = st.builds(Member, name=text, label=st.sampled_from(LABELS), p_a=maybe_half, weight=half)
verdict = st.builds(
    Verdict,
    label=st.sampled_from(LABELS),
    p_a=maybe_half,
    votes=lists(vote),
    members=lists(member),
    consistent=st.sampled_from([True, False, None]),
    usage=usage,
)
critique = st.builds(Critique, round=st.integers(1, 3), principles=lists(text), text=words, hashes=lists(text))
revision = st.builds(Revision, round=st.integers(1, 3), principles=lists(text), text=words, critique=critique)
candidate = st.builds(
    Candidate,
    response=st.builds(Response, prompt_id=text, index=st.integers(0, 9), text=words, model=text),
    revisions=lists(revision),
)
preference = st.builds(Preference, comparison=comparison, verdict=verdict, chosen=st.sampled_from("AB"), p_chosen=half)
dropped = st.builds(Dropped, prompt_id=text, stage=text, reason=text, detail=words, retry=st.booleans())
record = st.one_of(candidate, preference, dropped)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)


# Records.


@few
@given(record)
def test_a_record_is_the_same_after_its_json(value: Any) -> None:
    assert type(value).model_validate_json(canonical(value.model_dump(mode="json"))) == value


@few
@given(comparison, verdict)
def test_a_swap_and_a_flip_undo_themselves_and_keep_what_was_chosen(c: Comparison, v: Verdict) -> None:
    assert c.swap().swap() == c
    assert v.flip().flip() == v
    assert (c.swap().id == c.id) == (c.a == c.b)
    assert (c.swap().a_from, c.swap().b) == (c.b_from, c.a)
    if v.label in ("A", "B"):
        here = Preference(comparison=c, verdict=v, chosen=v.label, p_chosen=0.5)
        there = Preference(comparison=c.swap(), verdict=v.flip(), chosen=v.flip().label, p_chosen=0.5)
        assert here.texts == there.texts
    for one, other in zip((v, *v.votes, *v.members), (v.flip(), *v.flip().votes, *v.flip().members), strict=True):
        assert (one.p_a is None) == (other.p_a is None)
        assert one.p_a is None or one.p_a + other.p_a == 1
        assert one.label == other.label or {one.label, other.label} == {"A", "B"}


def turned(value: Any) -> Any:
    """The same data with the entries of every dict in the other order."""
    if isinstance(value, dict):
        return {k: turned(v) for k, v in reversed(value.items())}
    return [turned(v) for v in value] if isinstance(value, list) else value


@few
@given(plain)
def test_a_key_depends_on_the_data_and_not_on_the_order_of_a_dict(value: Any) -> None:
    assert digest(value) == digest(turned(value))
    assert json.loads(canonical(value)) == value


@few
@given(st.lists(words, max_size=4), st.lists(words, max_size=4))
def test_parts_of_a_key_are_kept_apart(one: list[str], other: list[str]) -> None:
    assert (digest(*one) == digest(*other)) == (one == other)


def test_a_request_of_another_content_has_another_key() -> None:
    sampling = Sampling(temperature=0.5, seed=1)
    asked = Request(messages=(Message(role="user", content="q"),), sampling=sampling)
    other = [Message(role="system", content="q"), Message(role="user", content="q2")]
    changed = [
        asked.model_copy(update=change)
        for change in (
            *({"messages": (m,)} for m in other),
            {"messages": (*asked.messages, other[0])},
            {"text": ""},
            {"choices": ("A", "B")},
            {"choices": ("AB",)},
        )
    ]
    draws = {"temperature": 0.6, "top_p": 0.9, "max_tokens": 9, "stop": ("\n",), "seed": 2}
    assert draws.keys() == Sampling.model_fields.keys()
    changed += [asked.model_copy(update={"sampling": sampling.model_copy(update={k: v})}) for k, v in draws.items()]
    keys = [r.key("engine") for r in (asked, *changed)] + [asked.key("other engine")]
    assert len(set(keys)) == len(keys)
    assert asked.model_copy(update={"affinity": "x"}).key("engine") == keys[0]


def test_a_principle_of_another_content_has_another_hash() -> None:
    first = Principle(id="a", choose="q")
    changes: dict[str, Any] = dict.fromkeys(Principle.model_fields, "other")
    changes |= {"weight": 2.0, "tags": ("x",), "applies_when": ("x",), "conflicts_with": ("x",)}
    changes["exemplars"] = ({"prompt": "p", "a": "x", "b": "y", "answer": "A"},)
    hashes = [Principle.model_validate({"id": "a", "choose": "q", k: v}).hash for k, v in changes.items()]
    assert len({first.hash, *hashes}) == len(Principle.model_fields) + 1


# Templates: what a model or a user wrote is text.


@few
@given(st.lists(st.sampled_from(["{a}", "{b}", "{", "}", "{A}", "x"]), max_size=8), words, words)
def test_a_template_is_filled_once(parts: list[str], a: str, b: str) -> None:
    template = "".join(parts)
    values = {k: v + "{a}{b}" for k, v in (("a", a), ("b", b)) if k in names(template)}
    expected = "".join(values[p[1:-1]] if p in ("{a}", "{b}") else p for p in parts)
    assert fill(template, **values) == expected


@few
@given(
    st.lists(st.sampled_from(["<", "</", "＜", "reply_a", "reply_b", "human", "human ", ">", "/", " ", "\u200b", "x"]))
)
def test_no_reply_opens_or_closes_a_fence(parts: list[str]) -> None:
    hostile = "".join(parts)
    question = _render.pairwise((Message(role="user", content=hostile),), hostile, hostile + "{a}", hostile)
    clean = _render.pairwise((Message(role="user", content="x"),), "x", "x", "x")
    for tag in tags_of(_render.PAIRWISE) | {"human"}:
        for mark in (f"<{tag}>", f"</{tag}>"):
            assert question.count(mark) == clean.count(mark)
    for safe in (fence_safe(hostile, {"reply_a", "human"}), role_safe(hostile)):
        assert safe.replace("\u200b", "") == hostile.replace("\u200b", "")


# Draws.


@few
@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 9)), min_size=1, unique_by=lambda x: x[0]),
    st.randoms(use_true_random=False),
    text,
)
def test_a_draw_is_the_same_whatever_principles_stand_beside_it(
    listed: list[tuple[str, int]], random: Any, key: str
) -> None:
    rules = [Principle(id=i, choose="q", weight=float(w)) for i, w in listed]
    drawn = draw(rules, len(rules), key)
    assert sorted(p.id for p in drawn) == sorted(i for i, _ in listed)
    some = [p for p in rules if random.random() < 0.5]
    random.shuffle(some)
    assert draw(some, len(rules), key) == tuple(p for p in drawn if p in some)
    reworded = [Principle(id=p.id, choose="other", weight=p.weight) for p in rules]
    for k in range(1, len(rules) + 1):
        assert [p.id for p in draw(reworded, k, key)] == [p.id for p in drawn[:k]]


# A judge's words.

SAID = [
    *("A", "B", "tie", "neither", "Answer: ", "verdict ", "The better reply is ", "\n", " ", ".", "**", "(", ")", '"'),
    *("“", "”", "<reply_a>", "</reply_a>", "> ", "```", "because", "I cannot", "8", "/10", "Score: ", "-", "11"),
]
saying = st.lists(st.sampled_from(SAID), max_size=12)
EDGE = " \t*\"'“”()[].!"


@settings(few, max_examples=150)
@given(saying)
def test_a_verdict_is_a_marker_at_the_end_of_a_line_or_none(parts: list[str]) -> None:
    said = "".join(parts)
    label = _parse.verdict(said)
    ends = [line.strip(EDGE).rsplit(maxsplit=1)[-1:] for line in re.split(r"\n", said)]
    found = {w.strip(EDGE).lower() for end in ends for w in end}
    told = {"a": "A", "b": "B", "tie": "tie", "neither": "tie", "both": "tie"}
    allowed = {told[w[-7:]] for w in found if w in told} | {
        told[m[1]] for w in found if (m := re.search(r"[^a-z0-9](a|b|tie|neither|both)$", w))
    }
    assert label in allowed | {"invalid", "refused"}
    swapped = "".join({"A": "B", "B": "A"}.get(p, p) for p in parts)
    if "I cannot" not in parts:
        assert _parse.verdict(swapped) == {"A": "B", "B": "A"}.get(label, label)


@settings(few, max_examples=150)
@given(saying, saying)
def test_what_a_judge_quotes_changes_nothing(parts: list[str], quoted: list[str]) -> None:
    marks = "\"“”<>`'"
    own = "".join(p for p in parts if not set(p) & set(marks))
    planted = "".join(p for p in quoted if not set(p) & set(marks))
    opened = f"I look at the replies.\n“it says {planted}” is in one\n"
    assert _parse.verdict(opened + own) == _parse.verdict("I look at the replies.\n… is in one\n" + own)
    assert _parse.score(opened + own) == _parse.score("I look at the replies.\n… is in one\n" + own)


@settings(few, max_examples=150)
@given(saying)
def test_a_score_is_a_number_that_was_said(parts: list[str]) -> None:
    said = "".join(parts)
    score = _parse.score(said)
    assert score is None or (1 <= score <= 10 and str(int(score)) in re.findall(r"\d+", said))
