"""Properties of the ledger: whatever is written, reopened and killed in whatever order, a dict says what it holds."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tenet.errors import AccountingError
from tenet.ledger import Calls, Rows, StoredReply
from tenet.records import Usage, canonical
from tests.test_properties import few

KEYS = [f"{n:032x}" for n in range(4)]
halves = st.text(max_size=4) | st.sampled_from(["\ud83d", "\0", "“"])  # half an emoji too: models do say it
reply = st.builds(
    StoredReply,
    text=halves,
    finish=st.sampled_from(["stop", "length"]),
    choice_logprobs=st.lists(st.none() | st.floats(-9, 0), max_size=2).map(tuple),
    usage=st.builds(
        Usage, calls=st.integers(1, 2), prompt_tokens=st.integers(0, 9), completion_tokens=st.integers(0, 9)
    ),
)


def killed(folder: Path) -> Path:
    """The files as the death of the process leaves them: nothing was closed, the log not yet folded in."""
    image = Path(tempfile.mkdtemp(dir=folder.parent))
    for path in folder.iterdir():
        if path.name != "run.lock":
            shutil.copy(path, image)
    return image


class CallsMachine(RuleBasedStateMachine):
    """Two runs that pay for the same few questions."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp())
        self.folder = self.home / "runs"
        self.replies: dict[str, StoredReply] = {}
        self.paid = {run: Usage() for run in ("one", "two")}
        self.calls = Calls(self.folder / "calls.sqlite")

    @rule(new=st.dictionaries(st.sampled_from(KEYS), reply, min_size=1), run=st.sampled_from(["one", "two"]))
    def put(self, new: dict[str, StoredReply], run: str) -> None:
        stored = asyncio.run(self.calls.put_many(new, run, "engine"))
        self.paid[run] = sum((r.usage for r in new.values()), self.paid[run])
        self.replies = new | self.replies  # the first write wins
        assert stored == {k: self.replies[k] for k in new}

    @rule()
    def reopen(self) -> None:
        self.calls.close()
        self.calls = Calls(self.folder / "calls.sqlite")

    @rule()
    def kill(self) -> None:
        image = killed(self.folder)
        self.calls.close()
        self.folder = image
        self.calls = Calls(self.folder / "calls.sqlite")

    @invariant()
    def holds_what_was_acknowledged(self) -> None:
        assert asyncio.run(self.calls.get_many(KEYS)) == self.replies
        paid = {run: self.calls.usage(run).get("engine", Usage()) for run in self.paid}
        assert paid == self.paid
        assert sum(self.calls.counts().values()) == len(self.replies)

    def teardown(self) -> None:
        self.calls.close()
        shutil.rmtree(self.home)


class RowsMachine(RuleBasedStateMachine):
    """One run's outcomes, of which some may be forgotten and walked again."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp())
        self.folder = self.home / "run"
        self.chains: dict[int, tuple[str, list[tuple[str, Any]]]] = {}
        self.meta: dict[str, str] = {}
        self.rows = Rows(self.folder)

    @rule(ordinal=st.sampled_from([0, 1, 2, 4095, 4096]), texts=st.lists(halves, max_size=2), retry=st.booleans())
    def put(self, ordinal: int, texts: list[str], retry: bool) -> None:
        chain: list[tuple[str, Any]] = [("respond", {"text": t}) for t in texts]
        chain.append(("outcome", {"retry": retry}))
        written = self.rows.put(ordinal, f"p{ordinal}", [(stage, canonical(record)) for stage, record in chain])
        if ordinal in self.chains:
            with pytest.raises(AccountingError, match="stored already"):
                asyncio.run(written)
        else:
            asyncio.run(written)
            self.chains[ordinal] = f"p{ordinal}", chain

    @rule(key=st.sampled_from("ab"), value=st.text(max_size=3))
    def say(self, key: str, value: str) -> None:
        self.rows.set_meta(key, value)
        self.meta[key] = value

    @precondition(lambda self: self.chains)
    @rule()
    def walk_again(self) -> None:
        again = [o for o, (_, chain) in self.chains.items() if chain[-1][1]["retry"]]
        assert self.rows.reopen() == len(again)
        for ordinal in again:
            del self.chains[ordinal]

    @rule()
    def reopen(self) -> None:
        self.rows.close()
        self.rows = Rows(self.folder)

    @rule()
    def kill(self) -> None:
        image = killed(self.folder)
        self.rows.close()
        self.folder = image
        self.rows = Rows(self.folder)

    @invariant()
    def holds_what_was_acknowledged(self) -> None:
        expected = [
            (ordinal, seq, id, stage, record)
            for ordinal, (id, chain) in sorted(self.chains.items())
            for seq, (stage, record) in enumerate(chain)
        ]
        assert [(*row[:4], json.loads(row.record)) for row in self.rows.iterate()] == expected
        assert [row[0] for row in self.rows.iterate("respond")] == [r[0] for r in expected if r[3] == "respond"]
        for ordinal in (0, 1, 2, 3, 4095, 4096):
            assert self.rows.done(ordinal) == self.chains.get(ordinal, (None,))[0]
        counts = self.rows.counts()
        assert (counts.prompts, sum(counts.stages.values())) == (len(self.chains), len(expected))
        assert {key: self.rows.meta(key) for key in "ab"} == {key: self.meta.get(key) for key in "ab"}

    def teardown(self) -> None:
        self.rows.close()
        shutil.rmtree(self.home)


@pytest.mark.parametrize("machine", [CallsMachine, RowsMachine])
def test_the_ledger_is_a_dict_that_outlives_its_process(machine: Any) -> None:
    run_state_machine_as_test(machine, settings=settings(few, max_examples=8, stateful_step_count=10))
