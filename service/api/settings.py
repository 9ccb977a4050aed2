"""What `tenet serve` is told: folders, models, judges, what API users may reach, and limits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from generators.revise import Settings as Revise
from tenet.records import Frozen


class Allow(Frozen):
    """What recipes that come over HTTP may name; what is not listed is refused."""

    base_urls: tuple[str, ...] = ()
    """Addresses of OpenAI-compatible servers, to the letter; by default none, not even public ones."""
    key_envs: tuple[str, ...] = ("OPENAI_API_KEY",)
    """Environment variables whose keys may be sent to those servers."""
    scripts: tuple[str, ...] = ("tenet.engines.scripted:echo",)
    """`package.module:function` of scripted engines: whoever may name a script runs code."""
    hub: bool = False
    """Whether models and data sets may be named as on a hub, which downloads them."""


class Limits(Frozen):
    """What one service gives at most."""

    body_mib: Annotated[float, Field(gt=0)] = 4.0
    """Largest request body."""
    depth: Annotated[int, Field(ge=4)] = 40
    """Deepest nesting of a JSON body."""
    receive_s: Annotated[float, Field(gt=0)] = 10.0
    """Seconds a client may take to send a request's head, and again for its body."""
    idle_s: Annotated[int, Field(ge=1)] = 30
    """Seconds an idle connection is kept."""
    connections: Annotated[int, Field(ge=1)] = 2000
    """Connections and unfinished requests at once; more are answered 503."""
    rate: Annotated[float, Field(gt=0)] = 200.0
    """Requests a second that a key (without keys: an address) may keep up."""
    burst: Annotated[int, Field(ge=1)] = 1000
    """Requests that it may send at once after a pause."""
    jobs: Annotated[int, Field(ge=1)] = 1
    """Jobs that work at once; the others wait."""
    queue: Annotated[int, Field(ge=0)] = 20
    """Jobs that may wait."""
    streams: Annotated[int, Field(ge=1)] = 200
    """Event streams at once."""
    page: Annotated[int, Field(ge=1)] = 200
    """Most items of a page."""
    scan_ms: Annotated[float, Field(gt=0)] = 100.0
    """Milliseconds a filter may search for one page; the cursor goes on from there."""
    pairs: Annotated[int, Field(ge=1)] = 512
    """Most pairs or replies judged in one call."""
    asking: Annotated[int, Field(ge=1)] = 64
    """Calls to chat, judge and score that are worked on at once; more are answered 429."""
    max_tokens: Annotated[int, Field(ge=1)] = 2048
    """Longest reply of chat, in tokens."""


class Chat(Frozen):
    """How `model: "assistant@harmless"` answers."""

    revise: Revise = Revise()
    """Rounds of critique and revision, and what happens to a revision that is not what was asked for."""
    attempts: Annotated[int, Field(ge=1, le=8)] = 3
    """Fresh answers to try where a revision fails; an answer that was not revised is never given out."""
    max_tokens: Annotated[int, Field(ge=1)] = 512
    """Longest reply where the client names no length."""


class Config(Frozen):
    """The service."""

    workspace: str = "runs"
    """Holds the run folders, `calls.sqlite`, and the service's own state under `.service`."""
    data: tuple[str, ...] = ("data",)
    """Folders that recipes and label sets may read from; relative paths are looked up in them in turn."""
    models: Annotated[dict[str, dict[str, Any]], Field(min_length=1)] = Field(
        default={"assistant": {"kind": "vllm", "model": "nano:assistant", "kv_cache_gib": 0.5}}
    )
    """Engines by name for chat, judge and score, started when first asked. A recipe brings its own."""
    judges: dict[str, dict[str, Any]] = Field(
        default={
            "pairwise": {"kind": "pairwise", "constitution": "nano", "order": "both", "principles": 4},
            "pointwise": {"kind": "pointwise", "constitution": "nano", "principles": "all"},
        }
    )
    """Judges by name: `constitution`, `kind` and that kind's settings."""
    judge: str = ""
    """The judge that answers where a call names none; empty: the first."""
    scorer: str = ""
    """The judge that scores where a call names none; empty: the first that can."""
    chat: Chat = Chat()
    allow: Allow = Allow()
    limits: Limits = Limits()
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides the draws of principles."""
    resume: bool = True
    """Whether jobs that died together with the service go on when it starts."""

    @property
    def home(self) -> Path:
        """The service's own state."""
        return Path(self.workspace) / ".service"
