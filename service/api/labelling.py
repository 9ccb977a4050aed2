"""Label sets: which pair a rater sees next, on which side, what was said, and votes for `tenet agree`.

Blind by construction: a rater gets texts only, on sides that a hash of rater and pair decides.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from typing import Any, Literal

from service.api.keys import now
from service.api.label_plan import is_swapped
from service.api.problems import Refusal
from service.api.store import Store
from tenet.records import Comparison, Message, Prompt

Side = Literal["left", "right", "tie"]
LEASE_S = 900.0
"""How long a pair that was shown waits for its rater before others may get it."""


def _count(db: sqlite3.Connection, name: str, item: str, more: int) -> None:
    """Keeps a pair's count of labels, in the transaction that changes them."""
    db.execute("UPDATE label_items SET given = given + ? WHERE label_set = ? AND item = ?", (more, name, item))


class LabelSets:
    """The label sets of a service's store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def create(self, name: str, spec: dict[str, Any], rows: list[tuple[Any, ...]]) -> None:
        """Refusal 409 if the name is taken."""
        try:
            with self._store.change() as db:
                db.execute("INSERT INTO label_sets VALUES (?, ?, ?)", (name, json.dumps(spec), now()))
                into = "label_items(label_set, item, place, wanted, planted, content)"
                made = [(name, *r) for r in rows]
                db.executemany(f"INSERT INTO {into} VALUES (?, ?, ?, ?, ?, ?)", made)  # nosec B608 # the words are ours
        except sqlite3.IntegrityError:
            raise Refusal(409, f"there is a label set {name!r} already, or a pair stands in it twice") from None

    def names(self) -> list[str]:
        return [r["name"] for r in self._store.all("SELECT name FROM label_sets ORDER BY created DESC, name")]

    def spec(self, name: str) -> dict[str, Any]:
        """How a set was made. Refusal 404."""
        row = self._store.one("SELECT spec, created FROM label_sets WHERE name = ?", (name,))
        if row is None:
            raise Refusal(404, f"there is no label set {name!r}")
        return {**json.loads(row["spec"]), "created": row["created"]}

    def next(self, name: str, rater: str) -> dict[str, Any] | None:
        """The pair that a rater should see now: the one that waits for them, or a new one; None if there is none.

        A pair that is shown counts as taken until its lease ends, so that two raters never do one pair's work twice.
        """
        spec = self.spec(name)
        at = time.time()
        with self._store.change() as db:
            held = db.execute(
                "SELECT item FROM leases WHERE label_set = ? AND rater = ? AND expires > ?", (name, rater, at)
            ).fetchone()
            item = held["item"] if held else self._choose(db, name, rater, spec["attention"], at)
            if item is None:
                return None
            db.execute("INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?)", (name, rater, item, at + LEASE_S))
        return self.shown(name, rater, item)

    def _choose(self, db: sqlite3.Connection, name: str, rater: str, attention: float, at: float) -> str | None:
        mine = (
            "NOT EXISTS (SELECT 1 FROM labels l WHERE l.label_set = i.label_set AND l.item = i.item "
            "AND l.rater = ? AND l.undone IS NULL)"
        )
        checks, others = self._done(db, name, rater)
        if attention and others >= round((checks + 0.5) / attention):
            query = "SELECT i.item FROM label_items i WHERE i.label_set = ? AND i.planted != '' AND "
            found = db.execute(query + mine + " ORDER BY i.place LIMIT 1", (name, rater)).fetchone()
            if found:
                return found["item"]
        query = (
            f"SELECT i.item FROM label_items i WHERE i.label_set = ? AND i.planted = '' AND i.given < i.wanted "
            f"AND {mine} AND i.given + (SELECT count(*) FROM leases e WHERE e.label_set = i.label_set "
            "AND e.item = i.item AND e.rater != ? AND e.expires > ?) < i.wanted ORDER BY i.place LIMIT 1"
        )
        found = db.execute(query, (name, rater, rater, at)).fetchone()
        return found["item"] if found else None

    @staticmethod
    def _done(db: sqlite3.Connection, name: str, rater: str) -> tuple[int, int]:
        """How many checks and how many other pairs a rater has labelled."""
        counts = db.execute(
            "SELECT sum(i.planted != '') AS checks, sum(i.planted = '') AS others FROM labels l JOIN label_items i "
            "ON i.label_set = l.label_set AND i.item = l.item WHERE l.label_set = ? AND l.rater = ? "
            "AND l.undone IS NULL",
            (name, rater),
        ).fetchone()
        return counts["checks"] or 0, counts["others"] or 0

    def shown(self, name: str, rater: str, item: str) -> dict[str, Any]:
        """A pair as its rater sees it. Refusal 404."""
        content = self._content(name, item)
        left, right = ("b", "a") if is_swapped(name, rater, item) else ("a", "b")
        return {"item": item, "prompt": content["messages"], "left": content[left], "right": content[right]}

    def _content(self, name: str, item: str) -> dict[str, Any]:
        query = "SELECT content FROM label_items WHERE label_set = ? AND item = ?"
        row = self._store.one(query, (name, item))
        if row is None:
            raise Refusal(404, f"the label set {name!r} has no pair {item[:40]!r}")
        return json.loads(row["content"])

    def submit(self, name: str, rater: str, item: str, side: Side, seconds: float | None) -> bool:
        """Stores what a rater says; whether it took the place of another label of theirs on this pair.

        The same label again changes nothing. Refusal 409 for a pair that was never shown to them.
        """
        self._content(name, item)
        label = {"left": "A", "right": "B", "tie": "tie"}[side]
        if side != "tie" and is_swapped(name, rater, item):
            label = "B" if label == "A" else "A"
        spot = (name, item, rater)
        with self._store.change() as db:
            old = db.execute(
                "SELECT label FROM labels WHERE label_set = ? AND item = ? AND rater = ? AND undone IS NULL", spot
            ).fetchone()
            lease = db.execute("SELECT 1 FROM leases WHERE label_set = ? AND item = ? AND rater = ?", spot).fetchone()
            if old is None and lease is None:
                raise Refusal(409, "this pair was not shown to this rater: ask for the next one first")
            db.execute("DELETE FROM leases WHERE label_set = ? AND item = ? AND rater = ?", spot)
            if old is not None and old["label"] == label:
                return False
            if old is not None:
                undo = "UPDATE labels SET undone = ? WHERE label_set = ? AND item = ? AND rater = ? AND undone IS NULL"
                db.execute(undo, (now(), *spot))
            add = "INSERT INTO labels(label_set, item, rater, label, seconds, given) VALUES (?, ?, ?, ?, ?, ?)"
            db.execute(add, (*spot, label, seconds, now()))
            if old is None:
                _count(db, name, item, 1)
        return old is not None

    def undo(self, name: str, rater: str) -> dict[str, Any]:
        """Takes back the rater's last label and shows its pair again. Refusal 409 if there is none."""
        self.spec(name)
        with self._store.change() as db:
            last = db.execute(
                "SELECT number, item FROM labels WHERE label_set = ? AND rater = ? AND undone IS NULL "
                "ORDER BY number DESC LIMIT 1",
                (name, rater),
            ).fetchone()
            if last is None:
                raise Refusal(409, "there is no label to take back")
            db.execute("UPDATE labels SET undone = ? WHERE number = ?", (now(), last["number"]))
            _count(db, name, last["item"], -1)
            lease = (name, rater, last["item"], time.time() + LEASE_S)
            db.execute("INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?)", lease)
        return self.shown(name, rater, last["item"])

    def mine(self, name: str, rater: str, after: int, limit: int) -> list[dict[str, Any]]:
        """A rater's own labels, the oldest first, as they saw the pairs."""
        self.spec(name)
        rows = self._store.all(
            "SELECT number, item, label, given FROM labels WHERE label_set = ? AND rater = ? AND undone IS NULL "
            "AND number > ? ORDER BY number LIMIT ?",
            (name, rater, after, limit),
        )
        made: list[dict[str, Any]] = []
        for r in rows:
            side = "tie" if r["label"] == "tie" else "left"
            if side == "left" and (r["label"] == "B") != is_swapped(name, rater, r["item"]):
                side = "right"
            shown = self.shown(name, rater, r["item"])
            made.append({**shown, "label": side, "number": r["number"], "given": r["given"]})
        return made

    def judge_side(self, name: str, rater: str, item: str) -> Side | None:
        """What the judge said of a pair, as this rater saw it; None if it said nothing that is one label."""
        said = {vote["verdict"] for vote in self._content(name, item)["judge"]}
        if len(said) != 1 or not said <= {"A", "B", "tie"}:
            return None
        label = said.pop()
        return "tie" if label == "tie" else "right" if (label == "B") != is_swapped(name, rater, item) else "left"

    def progress(self, name: str) -> dict[str, Any]:
        """Counts of a set and of its raters; `passed` of `checks` are attention checks answered right."""
        spec = self.spec(name)
        pairs = self._store.all(
            "SELECT i.wanted, count(l.number) AS n FROM label_items i LEFT JOIN labels l ON l.label_set = i.label_set "
            "AND l.item = i.item AND l.undone IS NULL WHERE i.label_set = ? AND i.planted = '' GROUP BY i.item",
            (name,),
        )
        raters = self._store.all(
            "SELECT l.rater, sum(i.planted = '') AS labels, sum(i.planted != '') AS checks, "
            "sum(i.planted = l.label) AS passed, avg(CASE WHEN i.planted = '' THEN l.seconds END) AS seconds "
            "FROM labels l JOIN label_items i ON i.label_set = l.label_set AND i.item = l.item "
            "WHERE l.label_set = ? AND l.undone IS NULL GROUP BY l.rater ORDER BY l.rater",
            (name,),
        )
        return {
            "set": name, "pairs": len(pairs), "done": sum(r["n"] >= r["wanted"] for r in pairs),
            "wanted": sum(r["wanted"] for r in pairs), "labels": sum(r["n"] for r in pairs),
            "raters": [{k: r[k] for k in ("rater", "labels", "checks", "passed", "seconds")} for r in raters],
            "instructions": spec.get("instructions", ""), "run": spec.get("run") or "",
        }  # fmt: skip

    def left(self, name: str, rater: str) -> tuple[int, int]:
        """(labels given, pairs that could still come) for a rater, attention checks not counted."""
        row = self._store.one(
            "SELECT count(*) AS n FROM label_items i WHERE i.label_set = ? AND i.planted = '' AND i.given < i.wanted "
            "AND NOT EXISTS (SELECT 1 FROM labels l WHERE l.label_set = i.label_set AND l.item = i.item "
            "AND l.rater = ? AND l.undone IS NULL)",
            (name, rater),
        )
        with self._store.change() as db:
            _, given = self._done(db, name, rater)
        return given, int(row["n"]) if row else 0

    def votes(self, name: str, min_attention: float = 0.0) -> Iterator[dict[str, Any]]:
        """Rows of a votes file: people's labels, then the judge's where it is known. Attention checks are left out,
        and so are raters who answered a smaller share of them right than `min_attention`."""
        raters = self.progress(name)["raters"]
        out = {r["rater"] for r in raters if r["checks"] and r["passed"] < min_attention * r["checks"]}
        rows = self._store.all(
            "SELECT i.item, i.content, l.rater, l.label FROM label_items i LEFT JOIN labels l "
            "ON l.label_set = i.label_set AND l.item = i.item AND l.undone IS NULL "
            "WHERE i.label_set = ? AND i.planted = '' ORDER BY i.place, l.rater",
            (name,),
        )
        told: set[str] = set()
        for r in rows:
            content = json.loads(r["content"])
            lengths = {"len_a": len(content["a"]), "len_b": len(content["b"])}
            base = {"item": content["id"], "slices": content["slices"], **lengths}
            if r["rater"] is not None and r["rater"] not in out:
                yield {**base, "rater": r["rater"], "kind": "human", "verdict": r["label"]}
            if r["item"] not in told:
                told.add(r["item"])
                yield from ({**base, **vote} for vote in content["judge"])

    def comparisons(self, name: str) -> dict[str, Comparison]:
        """The texts of a set's pairs."""
        query = "SELECT item, content FROM label_items WHERE label_set = ? AND planted = ''"
        found = [json.loads(r["content"]) for r in self._store.all(query, (name,))]
        return {
            c["id"]: Comparison(
                prompt=Prompt(messages=tuple(Message.model_validate(m) for m in c["messages"])), a=c["a"], b=c["b"]
            )
            for c in found
        }

    def version(self, name: str) -> tuple[int, int]:
        """Changes whenever a label is given or taken back."""
        row = self._store.one(
            "SELECT coalesce(max(number), 0) AS last, count(undone) AS undone FROM labels WHERE label_set = ?", (name,)
        )
        assert row is not None
        return row["last"], row["undone"]
