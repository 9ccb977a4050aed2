"""A stand-in endpoint for the comparison: fixed latency, and a book of which calls of which record were asked twice.

`python benchmarks/peers/stub.py --latency 0.05` prints its base URL and serves until its stdin closes. A call belongs
to a record by the "item-000123" in its text and to a stage by the stage's wording (chain.py). `GET /book` tells the
counts. A raw asyncio.Protocol, so that it costs less than whatever is measured against it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
from collections import Counter
from typing import Any

ITEM = re.compile(rb"item-(\d{6})")
STAGES = ((b"<reply_a>", "judge"), (b"Rewrite your last reply", "revise"), (b"Critique your last reply", "critique"))
SAID = {
    "respond": "Answer number %d: wash your hands, dry them, and leave the rest to the cook.",
    "critique": "It is vague about water, point %d, and says nothing about time.",
    "revise": "Use warm water for %d seconds. Then dry each hand on a clean towel.",
    "judge": " A",
    "other": "hello",
}


class Book:
    """What was asked, what was answered, and when."""

    def __init__(self) -> None:
        self.asked, self.answered = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
        self.other = self.busy = self.busiest = 0
        self.first = self.last = 0.0

    def told(self) -> dict[str, Any]:
        """Counts: `asked_again` are asks beyond a call's first, `paid_again` those whose first was answered."""
        again = {key: n - 1 for key, n in self.asked.items() if n > 1}
        paid = sum(max(0, n - 1) for n in self.answered.values())
        return {
            "asked": self.asked.total(),
            "answered": self.answered.total(),
            "distinct_answered": len(self.answered),
            "asked_again": sum(again.values()),
            "paid_again": paid,
            "other": self.other,
            "busy": self.busy,
            "busiest": self.busiest,
            "first": self.first,
            "last": self.last,
        }


class Connection(asyncio.Protocol):
    """One keep-alive connection; HTTP/1.1 with Content-Length, no pipelining."""

    transport: asyncio.Transport

    def __init__(self, book: Book, latency: float) -> None:
        self.book, self.latency = book, latency
        self.seen, self.wanted = b"", 0
        self.loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        seen = self.seen = self.seen + data if self.seen else data
        if not self.wanted:
            end = seen.find(b"\r\n\r\n")
            if end < 0:
                return
            length = re.search(rb"content-length: *(\d+)", seen[:end].lower())
            self.wanted = end + 4 + (int(length[1]) if length else 0)
        if len(seen) < self.wanted:
            return
        self.seen, self.wanted = b"", 0
        if seen.startswith(b"GET"):
            asked_book = seen.split(b" ", 2)[1].endswith(b"/book")
            told = self.book.told() if asked_book else {"object": "list", "data": [{"id": "stub", "object": "model"}]}
            self.transport.write(http(json.dumps(told).encode()))
            return
        item = ITEM.search(seen)
        stage = next((name for words, name in STAGES if words in seen), "respond") if item else "other"
        key = (item[1].decode() if item else "", stage)
        self.opened(key)
        self.loop.call_later(self.latency, self.answer, key, b'"top_logprobs"' in seen)

    def opened(self, key: tuple[str, str]) -> None:
        book = self.book
        if key[1] == "other":  # a probe of the client's own, such as a health check
            book.other += 1
            return
        book.asked[key] += 1
        book.first = book.first or time.time()
        book.busy += 1
        book.busiest = max(book.busiest, book.busy)

    def answer(self, key: tuple[str, str], scored: bool) -> None:
        book = self.book
        counted = key[1] != "other"
        book.busy -= counted
        if not self.transport.is_closing():
            # An answer that nobody takes any more is not counted: a killed client never had it.
            self.transport.write(reply(key[1], book.answered.total() if counted else 0, scored))
            if counted:
                book.answered[key] += 1
                book.last = time.time()


def reply(stage: str, number: int, scored: bool) -> bytes:
    """A chat completion; no two are alike, so that no filter takes one for a copy of another."""
    return http((SCORED if scored else BODIES[stage]).replace(b"%d", b"%d" % number))


def http(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


def completion(text: str, **more: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", "logprobs": None}
    usage = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}
    head = {"id": "chatcmpl-%d", "object": "chat.completion", "created": 1, "model": "stub"}
    return json.dumps({**head, "choices": [choice | more], "usage": usage}).encode()


BODIES = {stage: completion(text) for stage, text in SAID.items()}
TOP = [
    {"token": t, "logprob": p, "bytes": list(t.encode())}
    for t, p in ((" A", -0.3), (" B", -1.4), *((f"t{i}", -5.0 - i) for i in range(18)))
]
SCORED = completion(" A", logprobs={"content": [{**TOP[0], "top_logprobs": TOP}], "refusal": None})


async def serve(latency: float) -> None:
    loop, book = asyncio.get_running_loop(), Book()
    server = await loop.create_server(lambda: Connection(book, latency), "127.0.0.1", 0, backlog=2048)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)  # whoever started us is gone when this ends


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--latency", type=float, default=0.05, help="seconds an answer takes")
    asyncio.run(serve(options.parse_args().latency))
