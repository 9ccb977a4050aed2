"""Exports: what a run's rows become for trainers, in Parquet and JSONL, with a dataset card.

The shapes are TRL's conversational ones, so that SFTTrainer, RewardTrainer, DPOTrainer and KTOTrainer take
the files as they are.
"""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from generators.filters import Sieve
from generators.respond import conversation
from service import _executors_card
from service.recipe import Plan
from tenet.ledger import Rows
from tenet.records import Candidate, Message, Preference, Prompt

NAMES = ("preference", "sft", "reward", "unpaired")
_BATCH = 1000


def _schemas() -> dict[str, Any]:
    import pyarrow as pa

    turn = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    vote = pa.struct(
        [
            ("principle", pa.string()), ("order", pa.string()), ("label", pa.string()),
            ("p_a", pa.float64()), ("logprob_a", pa.float64()), ("logprob_b", pa.float64()),
            ("score_a", pa.float64()), ("score_b", pa.float64()), ("member", pa.string()),
            ("sample", pa.int64()), ("rationale", pa.string()), ("principle_hash", pa.string()),
        ]
    )  # fmt: skip
    pair = [("prompt", turn), ("chosen", turn), ("rejected", turn), ("p_chosen", pa.float64())]
    return {
        "preference": pa.schema(
            [
                *pair, ("prompt_id", pa.string()), ("chosen_from", pa.string()),
                ("rejected_from", pa.string()), ("principles", pa.list_(pa.string())),
                ("consistent", pa.bool_()), ("chosen_slot", pa.string()), ("votes", pa.list_(vote)),
                ("constitution", pa.string()),
            ]
        ),
        "sft": pa.schema(
            [
                ("prompt", turn), ("completion", turn), ("prompt_id", pa.string()),
                ("sample", pa.int64()), ("round", pa.int64()), ("last", pa.bool_()),
                ("principles", pa.list_(pa.string())), ("flags", pa.list_(pa.string())),
                ("principle_hashes", pa.list_(pa.string())), ("constitution", pa.string()),
            ]
        ),
        "reward": pa.schema(pair),
        "unpaired": pa.schema(
            [("prompt", turn), ("completion", turn), ("label", pa.bool_()), ("p", pa.float64())]
        ),
    }  # fmt: skip


def _turns(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in messages]


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def sft_rows(prompt: Prompt, candidate: Candidate, system: str, rules: str = "") -> Iterator[dict[str, Any]]:
    """Every revision of a reply; one that was never revised is a row of round 0. `rules`: the constitution's hash."""
    asked = _turns(conversation(prompt, system))
    base = {"prompt": asked, "prompt_id": prompt.id, "sample": candidate.response.index, "constitution": rules}
    if not candidate.revisions:
        said = _said(candidate.response.text)
        none: dict[str, list[str]] = {"principles": [], "flags": [], "principle_hashes": []}
        yield {**base, "completion": said, "round": 0, "last": True, **none}
    for revision in candidate.revisions:
        yield {
            **base,
            "completion": _said(revision.text),
            "round": revision.round,
            "last": revision is candidate.revisions[-1],
            "principles": list(revision.principles),
            "flags": list(revision.flags),
            "principle_hashes": list(revision.hashes),
        }


def preference_row(p: Preference, system: str, rules: str = "") -> dict[str, Any]:
    """A judged pair with every vote; p_a and log-probabilities are of the comparison's own a and b.

    `rules` is the constitution's hash.
    """
    chosen, rejected = p.texts
    c = p.comparison
    froms = (c.a_from, c.b_from) if p.chosen == "A" else (c.b_from, c.a_from)
    return {
        "prompt": _turns(conversation(c.prompt, system)),
        "chosen": _said(chosen),
        "rejected": _said(rejected),
        "p_chosen": p.p_chosen,
        "prompt_id": c.prompt.id,
        "chosen_from": froms[0],
        "rejected_from": froms[1],
        "principles": list(dict.fromkeys(v.principle for v in p.verdict.votes if v.principle)),
        "consistent": p.verdict.consistent,
        "chosen_slot": p.chosen,
        "votes": [
            {
                "principle": v.principle, "order": v.order, "label": v.label, "p_a": v.p_a,
                "logprob_a": _finite(v.logprobs, 0),
                "logprob_b": _finite(v.logprobs, 1),
                "score_a": v.scores[0] if v.scores else None,
                "score_b": v.scores[1] if v.scores else None,
                "member": v.member, "sample": v.sample, "rationale": v.rationale,
                "principle_hash": v.principle_hash,
            }
            for v in p.verdict.votes
        ],
        "constitution": rules,
    }  # fmt: skip


def _finite(logprobs: tuple[float, float] | None, which: int) -> float | None:
    """A log-probability, or null where there is none; JSON has no -inf, and p_a says 0 or 1 there."""
    x = logprobs[which] if logprobs else None
    return x if x is not None and math.isfinite(x) else None


class _Writer:
    """One export in both formats; rows are written in batches, so memory stays flat."""

    def __init__(self, folder: Path, name: str) -> None:
        import pyarrow.parquet as pq

        self.rows = 0
        self._schema = _schemas()[name]
        self._waiting: list[dict[str, Any]] = []
        self.paths = (folder / f"{name}.parquet", folder / f"{name}.jsonl")
        self._parquet = pq.ParquetWriter(self.paths[0], self._schema, compression="zstd")
        self._jsonl = self.paths[1].open("w", encoding="utf-8", newline="\n")

    def add(self, row: dict[str, Any]) -> None:
        self.rows += 1
        self._waiting.append(row)
        if len(self._waiting) >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._waiting:
            self._parquet.write_table(pa.Table.from_pylist(self._waiting, schema=self._schema))
            self._jsonl.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in self._waiting)
            self._waiting = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if error is None:
                self._flush()
        finally:
            self._parquet.close()
            self._jsonl.close()


def write(rows: Rows, plan: Plan, folder: Path) -> tuple[dict[str, Any], Sieve]:
    """Writes all exports into a folder; returns rows and SHA-256 of each file, and what the sieve held back."""
    folder.mkdir(parents=True, exist_ok=True)
    system, rules = plan.recipe.respond.system, plan.constitution.hash
    sieve = Sieve(plan.recipe.keep)
    prompt: Prompt | None = None
    writers = {name: _Writer(folder, name) for name in NAMES}
    with (
        writers["preference"] as pref,
        writers["sft"] as sft,
        writers["reward"] as reward,
        writers["unpaired"] as unpaired,
    ):
        for row in rows.iterate():
            if row.stage == "prompt":
                prompt = Prompt.model_validate_json(row.record)
            elif row.stage == "candidate" and prompt is not None:
                for line in sft_rows(prompt, Candidate.model_validate_json(row.record), system, rules):
                    sft.add(line)
            elif row.stage == "preference":
                made = Preference.model_validate_json(row.record)
                if not sieve.passes(made):
                    continue
                line = preference_row(made, system, rules)
                pref.add(line)
                reward.add({k: line[k] for k in ("prompt", "chosen", "rejected", "p_chosen")})
                for side, label in (("chosen", True), ("rejected", False)):
                    p = line["p_chosen"] if label else 1.0 - line["p_chosen"]
                    unpaired.add({"prompt": line["prompt"], "completion": line[side], "label": label, "p": p})
    files = {
        path.name: {"rows": writer.rows, "sha256": _sha256(path)}
        for writer in writers.values()
        for path in writer.paths
    }
    return files, sieve


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def card(plan: Plan, manifest: Mapping[str, Any]) -> str:
    """The dataset card: a README.md that `datasets` reads for the configurations."""
    configs = "\n".join(f"- config_name: {name}\n  data_files: data/{name}.parquet" for name in NAMES)
    c = plan.constitution
    rules = "\n".join(f"- `{p.id}` {p.title or p.choose}" for p in c.principles[:40])
    judge = ", ".join(f"{k}: {v}" for k, v in plan.recipe.judge.items())
    judged_by = manifest["judge_engines"]
    kin = sorted({e["family"] for e in judged_by if e["writes_too"]})
    named = ", ".join(e["name"] for e in judged_by)
    flag = f"\n\n**The judge is of a writer's family** ({', '.join(kin)}): models tend to prefer their kin."
    votes = manifest["agreement"]
    drops = "\n".join(
        f"| {unit} | {stage} | {reason} | {n} |"
        for unit, stages in manifest["drops"].items()
        for stage, reasons in stages.items()
        for reason, n in reasons.items()
    )
    files = "\n".join(
        f"| {name} | {facts['rows']} |" for name, facts in manifest["files"].items() if name.endswith(".parquet")
    )
    return f"""---
configs:
{configs}
tags: [rlaif, constitutional-ai, synthetic]
---
# {plan.folder.name}

Synthetic preference data, made by tenet {manifest["versions"]["tenet"]} from a written constitution.
No label here comes from a person: `p_chosen` is what a model judged, and every vote is kept in `votes`.

| file | rows |
|---|---|
{files}

**Constitution** `{c.name}` {c.version} (hash `{c.hash}`), {len(c.principles)} principles. {c.serves}

{rules}

**Judge** {judge}; engine {named}. A constitution means what its judge makes of it: the two
are the labels' provenance together.{flag if kin else ""}

**Both slot orders agree** on {_share(votes["consistent"], votes["both_orders"])} of pairs judged in both
(rule: each order alone, averaged over the principles, gives the same label; n = {votes["both_orders"]}).
First slot preferred in {_share(votes["first_slot"], votes["readable_votes"])} of votes (n = {votes["readable_votes"]};
50% is unbiased). The chosen reply is the longer one in {_share(votes["longer_chosen"], votes["uneven"])} of pairs
(n = {votes["uneven"]}).

**Agreement with people** has not been measured for this data set.

{_executors_card.block(plan.folder, c.hash)}

**Dropped**, by what was dropped, stage and reason; prompts in: {manifest["prompts"]["rows"]}.

| what | stage | reason | n |
|---|---|---|---|
{drops or "| – | – | – | 0 |"}
"""


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "(undefined: n = 0)"
