"""A scriptable stand-in for an OpenAI-compatible server: faults for tests, a pace for benchmarks.

In a test: `async with Stub(script) as stub:` serves `stub.base_url` in the same event loop; the
script gets each Call and returns an Answer. As a process of its own (`python tests/stub_server.py
--latency 0.05`) it prints its base URL and answers everything; it stops when its stdin closes.
A raw asyncio.Protocol, so that it costs less than whatever is measured against it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Call:
    """What a client sent; `number` counts from 0."""

    number: int
    path: str
    headers: dict[str, str]
    payload: bytes

    @property
    def body(self) -> dict[str, Any]:
        return json.loads(self.payload)


@dataclass
class Answer:
    """What goes back: a status, a body (a value is dumped as JSON), headers, seconds to wait.

    `cut` sends only so many bytes of the body, under the full length, and hangs up; `reset` hangs
    up without a word; `drip` sends a tenth of the answer every so many seconds.
    """

    body: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    delay: float = 0.0
    cut: int | None = None
    reset: bool = False
    drip: float = 0.0

    def encode(self) -> bytes:
        body = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        headers = {"content-type": "application/json", **self.headers}
        head = [f"HTTP/1.1 {self.status} Stub"]
        head += [f"{name}: {value}" for name, value in headers.items()]
        head += [f"content-length: {len(body)}", "", ""]
        return "\r\n".join(head).encode() + body[: self.cut]


USAGE = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}


def chat(text: str | None = "hello", *, finish: str = "stop", **more: Any) -> Answer:
    """A good /chat/completions answer; `more` goes into the message."""
    message = {"role": "assistant", "content": text, **more}
    first = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
    return Answer({"object": "chat.completion", "choices": [first], "usage": USAGE})


def scores(*tokens: tuple[str, float]) -> Answer:
    """A /chat/completions answer of one token, with the log-probabilities of the likeliest."""
    answer = chat(tokens[0][0], finish="length")
    top = [{"token": t, "logprob": v, "bytes": list(t.encode())} for t, v in tokens]
    content = [{**top[0], "top_logprobs": top}]
    answer.body["choices"][0]["logprobs"] = {"content": content}
    return answer


def completion(text: str = "hello", top: dict[str, float] | None = None) -> Answer:
    """A /completions answer, with one token's log-probabilities if `top` is given."""
    told = {"tokens": [text], "token_logprobs": [-0.1], "top_logprobs": [top]} if top else None
    first = {"index": 0, "text": text, "finish_reason": "stop", "logprobs": told}
    return Answer({"object": "text_completion", "choices": [first], "usage": USAGE})


def error(status: int, message: str = "", code: str = "", **headers: str) -> Answer:
    """An error in OpenAI's shape; `retry_after="1"` becomes the header Retry-After."""
    body = {"error": {"message": message, "type": "stub", "code": code or None}}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(body, status=status, headers=named)


Script = Callable[[Call], Answer]


class Stub:
    """Serves a script on a free port of 127.0.0.1; keeps the calls, and the most at one time."""

    def __init__(self, script: Script, tls: ssl.SSLContext | None = None) -> None:
        self.script, self._tls = script, tls
        self.calls: list[Call] = []
        self.busy = 0
        self.busiest = 0
        self.base_url = ""

    async def __aenter__(self) -> Stub:
        loop = asyncio.get_running_loop()
        self.connections: set[_Connection] = set()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", 0, ssl=self._tls)
        self.base_url = f"http{'s' if self._tls else ''}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for connection in list(self.connections):
            connection.transport.abort()
        await self._server.wait_closed()
        await asyncio.sleep(0)


class _Connection(asyncio.Protocol):
    """One keep-alive connection; HTTP/1.1 with Content-Length, no pipelining."""

    transport: asyncio.Transport

    def __init__(self, stub: Stub) -> None:
        self._stub = stub
        self._seen = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._stub.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stub.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        if data[:1] == b"\x16":  # TLS where none is spoken: as other servers, say so in plain words
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
            self.transport.close()
            return
        self._seen += data
        head, gap, rest = self._seen.partition(b"\r\n\r\n")
        if not gap:
            return
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines)}
        if len(rest) < int(headers.get("content-length", 0)):
            return
        self._seen = b""
        stub = self._stub
        call = Call(len(stub.calls), first.split(" ")[1], headers, rest)
        stub.calls.append(call)
        stub.busy += 1
        stub.busiest = max(stub.busiest, stub.busy)
        answer = stub.script(call)
        asyncio.get_running_loop().call_later(answer.delay, self._answer, answer)

    def _answer(self, answer: Answer) -> None:
        self._stub.busy -= 1
        if answer.reset:
            self.transport.abort()
        elif not self.transport.is_closing():
            said = answer.encode()
            if answer.drip:
                self._drip(said, len(said) // 10 + 1, answer.drip)
                return
            self.transport.write(said)
            if answer.cut is not None:
                self.transport.close()

    def _drip(self, said: bytes, size: int, pause: float) -> None:
        if said and not self.transport.is_closing():
            self.transport.write(said[:size])
            asyncio.get_running_loop().call_later(pause, self._drip, said[size:], size, pause)


class _Fast(asyncio.Protocol):
    """Benchmark mode: reads no more than the length, answers after a fixed time."""

    counter = 0

    def __init__(self, latency: float) -> None:
        self._latency = latency
        self._seen = b""
        self._wanted = 0
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        seen = self._seen = self._seen + data if self._seen else data
        if not self._wanted:
            end = seen.find(b"\r\n\r\n")
            if end < 0:
                return
            head = seen[:end].lower()
            at = head.index(b"content-length:") + 15
            stop = head.find(b"\r", at)
            self._wanted = end + 4 + int(head[at : stop if stop > 0 else len(head)])
        if len(seen) < self._wanted:
            return
        self._seen, self._wanted = b"", 0
        self._loop.call_later(self._latency, self._write, _scored() if b'"top_logprobs"' in seen else _said(seen))

    def _write(self, answer: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(answer)


def _said(asked: bytes) -> bytes:
    # No two replies are alike, so that no filter takes one for a copy of another.
    _Fast.counter += 1
    said = _REWRITTEN if b"Rewrite your last reply" in asked else _CRITIQUE if b"Critique your" in asked else _SAID
    body = said % _Fast.counter
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
        len(body),
        body,
    )


def _scored() -> bytes:
    return _SCORED


_SAID = json.dumps(chat("Answer number %d: wash your hands, dry them, and leave the rest to the cook.").body).encode()
_CRITIQUE = json.dumps(chat("It is vague about water, point %d, and says nothing about time.").body).encode()
_REWRITTEN = json.dumps(chat("Use warm water for %d seconds. Then dry each hand on a clean towel.").body).encode()
_SCORED = scores((" A", -0.3), (" B", -1.4), *((f"t{i}", -5.0 - i) for i in range(18))).encode()


async def _serve(latency: float, port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Fast(latency), "127.0.0.1", port, backlog=2048)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)  # whoever started us is gone when this ends


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--latency", type=float, default=0.05, help="seconds an answer takes")
    options.add_argument("--port", type=int, default=0, help="0: any free one")
    given = options.parse_args()
    asyncio.run(_serve(given.latency, given.port))
