"""The OpenAI wire format: a Request as a body, and an answer's body as a Reply."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from tenet.engines import Reply, Request
from tenet.records import Usage
from tenet.templates import role_safe

JSON = dict[str, Any]
Pinned = Literal["fingerprint", "model", "nothing"]

_encode = json.JSONEncoder(separators=(",", ":")).encode
_NO_SCORES = (
    "the server returned no log-probabilities; start it with them on, or set `choices: false` on "
    "the engine and `verdict: hard` on the judge"
)
_TOO_LONG = re.compile(
    r"context[ _](length|window|size)|max_model_len|prompt is too long|input is too long"
    r"|reduce the length|too many (input )?tokens",
    re.IGNORECASE,
)
_FLOOR = -9999.0  # what vLLM and OpenAI write where a token's log-probability is -inf or unknown


class Unreadable(Exception):
    """An answer that is not what the protocol promises; `usage` is what it cost all the same."""

    def __init__(self, what: str, usage: Usage = Usage()) -> None:  # noqa: B008 (frozen)
        super().__init__(what)
        self.usage = usage


def body_of(request: Request, *, model: str, extra: JSON, top: int, length_field: str) -> tuple[str, bytes]:
    """(path, JSON body) of a request; `top` is top_logprobs, `length_field` a chat reply's limit.

    Choices are asked at temperature 0: the log-probabilities that servers return are those of the
    model's own distribution (temperature 1), and 0 keeps the token drawn among the top ones.
    """
    body: JSON = {"model": model}
    chat = request.text is None
    limit = length_field if chat else "max_tokens"
    if chat:
        body["messages"] = [{"role": m.role, "content": role_safe(m.content)} for m in request.messages]
    else:
        body["prompt"] = request.text
    if request.choices:
        body[limit] = 1
        body["temperature"] = 0
        body["logprobs"] = True if chat else top
        if chat:
            body["top_logprobs"] = top
    else:
        s = request.sampling
        body[limit] = s.max_tokens
        body["temperature"] = s.temperature
        if s.top_p != 1.0:
            body["top_p"] = s.top_p
        if s.stop:
            body["stop"] = s.stop
        if s.seed is not None and s.temperature > 0:
            body["seed"] = s.seed
    if extra:
        body.update(extra)
    return ("/chat/completions" if chat else "/completions"), _encode(body).encode()


def load(payload: bytes) -> JSON:
    """The JSON object in an answer's body; Unreadable if there is none."""
    try:
        said: Any = json.loads(payload.decode())  # bytes would first be searched for a UTF-16
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"the answer is not JSON: {type(error).__name__} in {len(payload)} bytes") from None
    if not isinstance(said, dict):
        raise Unreadable(f"the answer is a JSON {type(said).__name__}, not an object")
    return cast(JSON, said)


def reply_of(said: JSON, request: Request, pinned: Pinned = "nothing") -> Reply:
    """The Reply that an answer holds; Unreadable if it holds none and asking again may help."""
    usage, served = _usage(said.get("usage")), served_by(said, pinned)
    try:
        first = said["choices"][0]
        finish: object = first.get("finish_reason")
        message: Any = first["message"] if request.text is None else first
        text: object = message.get("content") if request.text is None else message.get("text")
        refusal: object = message.get("refusal")
        scores: object = first.get("logprobs")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise Unreadable("the answer has no choices", usage) from None
    if finish == "content_filter" or refusal:
        why = clean(str(refusal)) if refusal else "the server's content filter stopped the reply"
        return Reply(fault="refused", detail=why, usage=usage)
    if request.choices:
        found, detail = score(request.choices, _top(scores))
        if not found and text is None and not finish:  # a null answer, not a server without log-probabilities
            raise Unreadable("the answer is null", usage)
        return (
            Reply(choice_logprobs=found, usage=usage, served=served, detail=detail)
            if found
            else Reply(fault="bad_reply", detail=_NO_SCORES, usage=usage)
        )
    if text is None and finish == "length":
        text = ""  # a reasoning model that thought until its tokens ran out: cut short, not unreadable
    if not isinstance(text, str):
        raise Unreadable(f"the answer has no text (finish_reason {finish!r:.40})", usage)
    if finish in ("abort", "error"):
        raise Unreadable(f"the server broke off the reply (finish_reason {finish!r})", usage)
    return Reply(text=_storable(text), finish="length" if finish == "length" else "stop", usage=usage, served=served)


def served_by(said: JSON, pinned: Pinned) -> str:
    """What an answer says of who gave it: "model", or "model, system_fingerprint"; "" for what is not pinned."""
    names = {"nothing": (), "model": ("model",), "fingerprint": ("model", "system_fingerprint")}[pinned]
    return ", ".join(clean(name) for n in names if isinstance(name := said.get(n), str) and name)


def _storable(text: str) -> str:
    """Half a surrogate pair is legal in JSON and illegal in UTF-8: it becomes U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _usage(said: object) -> Usage:
    if not isinstance(said, dict):
        return Usage(calls=1)
    told = cast(JSON, said)
    prompt = _count(told.get("prompt_tokens"))
    details: Any = told.get("prompt_tokens_details")
    cached = _count(cast(JSON, details).get("cached_tokens")) if isinstance(details, dict) else 0
    return Usage(
        calls=1,
        prompt_tokens=prompt,
        completion_tokens=_count(told.get("completion_tokens")),
        cached_tokens=min(cached, prompt),
    )


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _top(scores: object) -> list[tuple[str, float]] | None:
    """The first token's alternatives as (text, log-probability); None if the answer has none.

    /chat/completions lists them; /completions has one object for each token, keyed by text.
    """
    if not isinstance(scores, dict):
        return None
    told = cast(JSON, scores)
    try:
        if content := told.get("content"):
            found = [(t["token"], t["logprob"]) for t in content[0]["top_logprobs"]]
            found = found or [(content[0]["token"], content[0]["logprob"])]
        else:
            found = list(told["top_logprobs"][0].items())
    except (KeyError, IndexError, TypeError, AttributeError):
        return None
    return [
        (token, float("nan") if value is None else float(value))
        for token, value in found
        if isinstance(token, str) and (value is None or isinstance(value, (int, float)))
    ] or None


def score(choices: Sequence[str], top: Sequence[tuple[str, float]] | None) -> tuple[tuple[float | None, ...], str]:
    """Each choice's log-probability in nats, or None where it cannot be told, and why.

    A token stands for a choice if the texts are equal, one leading space aside: tokenizers write
    both "A" and " A", and where both occur their probabilities add up. The space counts where two
    choices differ in nothing else. A choice of several tokens is never among the tokens, so it gets
    None; so does one that begins another choice which is not there ("1" where "10" is missing),
    since its token may be the start of that other. () if there are no log-probabilities at all.
    """
    if not top:
        return (), ""
    plain = [c.removeprefix(" ") for c in choices]
    ambiguous = {p for p in plain if plain.count(p) > 1}
    there: Mapping[str, list[float]] = {c: [] for c in choices}
    for token, value in top:
        bare = token.removeprefix(" ")
        for choice, p in zip(choices, plain, strict=True):
            if token == choice or (bare == p and p not in ambiguous):
                there[choice].append(value)
                break
    missing = [c for c, values in there.items() if not values]
    notes: list[str] = []
    found: list[float | None] = []
    for choice, p in zip(choices, plain, strict=True):
        values = there[choice]
        value: float | None = None
        if not values:
            notes.append(f"{choice!r} is not one of the top {len(top)} tokens")
        elif longer := [m for m in missing if m.removeprefix(" ").startswith(p)]:
            notes.append(f"{choice!r} may be the beginning of {longer[0]!r}")
        elif bad := [v for v in values if not (_FLOOR < v <= 1e-4)]:  # NaN fails every comparison
            notes.append(f"{choice!r} has log-probability {bad[0]}")
        else:
            value = min(0.0, _logsumexp(values))  # rounding alone can lift certainty above 0
        found.append(value)
    return tuple(found), "; ".join(notes)


def _logsumexp(values: Sequence[float]) -> float:
    if len(values) == 1:
        return values[0]
    high = max(values)
    return high + math.log(math.fsum(math.exp(v - high) for v in values))


def error_of(payload: bytes) -> tuple[str, str]:
    """(message, code) of an error's body, whatever shape the server gave it."""
    try:
        said: Any = json.loads(payload)
        said = said.get("error", said)
        if not isinstance(said, dict):
            return clean(str(said)), ""
        told = cast(JSON, said)
        message = told.get("message") or told.get("detail") or told.get("error") or ""
        return clean(str(message)), str(told.get("code") or told.get("type") or "")
    except (ValueError, RecursionError, AttributeError):
        return clean(payload[:2000].decode("utf-8", "replace")), ""


def too_long(message: str, code: str) -> bool:
    """Whether an error says that the prompt does not fit into the model's context."""
    return code == "context_length_exceeded" or bool(_TOO_LONG.search(message))


def clean(text: str) -> str:
    """A server's words on one line, without control characters, at most 300 characters."""
    return "".join(c if c.isprintable() else " " for c in text[:300]).strip()
