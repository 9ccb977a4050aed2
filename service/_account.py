"""A run counted from its own rows: what was kept and dropped, and whether the numbers add up."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from service.pipeline import Outcome
from tenet.errors import AccountingError
from tenet.ledger import Rows
from tenet.records import Dropped, Preference, Verdict


def account(rows: Rows) -> dict[str, Any]:
    """Counts a run from its rows, and proves that they add up: AccountingError if they do not."""
    n: Counter[str] = Counter()
    drops: dict[str, dict[str, dict[str, int]]] = {}
    agreement: Counter[str] = Counter()
    pair_drops = 0
    for row in rows.iterate():
        if row.stage == "outcome":
            outcome = Outcome.model_validate_json(row.record)
            n["rows"] += 1
            n["kept" if outcome.preferences else "dropped"] += 1
            n["claimed"] += outcome.preferences
            n["comparisons"] += outcome.comparisons
        elif row.stage == "dropped":
            d = Dropped.model_validate_json(row.record)
            pair_drops += d.unit == "pair"
            n["dropped prompts"] += d.unit == "prompt"
            reasons = drops.setdefault(d.unit, {}).setdefault(d.stage, {})
            reasons[d.reason] = reasons.get(d.reason, 0) + 1
        elif row.stage in ("preference", "judged"):
            record = json.loads(row.record)
            n["preferences"] += row.stage == "preference"
            _agree(agreement, record)
    if n["claimed"] != n["preferences"] or n["dropped"] != n["dropped prompts"]:
        raise AccountingError(f"outcomes and records differ: {dict(n)}")
    if n["comparisons"] != n["preferences"] + pair_drops:
        raise AccountingError(
            f"{n['comparisons']} pairs were made, but {n['preferences']} preferences and "
            f"{pair_drops} dropped pairs are stored"
        )
    names = ("both_orders", "consistent", "readable_votes", "first_slot", "uneven", "longer_chosen")
    return {
        "rows": n["rows"], "kept": n["kept"], "dropped": n["dropped"],
        "comparisons": n["comparisons"], "preferences": n["preferences"],
        "drops": drops, "agreement": {name: agreement[name] for name in names},
    }  # fmt: skip


def _agree(agreement: Counter[str], record: dict[str, Any]) -> None:
    """Adds a judged pair's order and length figures."""
    verdict = Verdict.model_validate(record["verdict"])
    agreement["both_orders"] += verdict.consistent is not None
    agreement["consistent"] += bool(verdict.consistent)
    for vote in verdict.votes:
        if vote.order is not None and vote.label in ("A", "B"):
            agreement["readable_votes"] += 1
            agreement["first_slot"] += (vote.label == "A") == (vote.order == "ab")
    if "chosen" in record:
        chosen, rejected = Preference.model_validate(record).texts
        agreement["uneven"] += len(chosen) != len(rejected)
        agreement["longer_chosen"] += len(chosen) > len(rejected)
