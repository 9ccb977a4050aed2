"""PPO's loop: draw, score, learn, and every step's figures; each step follows from the seed and the weights alone."""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from tenet.errors import TrainingError
from tenet.records import seed_of
from trainers import _ppo_math as m
from trainers import _ppo_state
from trainers._common import plain
from trainers._ppo_networks import Networks
from trainers._ppo_reward import Reward, Scorer, Turns, usable
from trainers._ppo_rollout import Ids, Rollouts
from trainers._ppo_update import Experience, Learner, NotFinite, Objective, experience

_SHOWN = 4
"""Replies of each logged step that samples.jsonl shows."""
_FAR = 0.5
"""Nats. 16-bit rounding costs some hundredths; weights of another model cost more than this."""


class Ask(NamedTuple):
    """A prompt: its row's place, its conversation, its tokens."""

    id: str
    turns: Turns
    ids: Ids


@dataclass(frozen=True)
class Parts:
    """What a loop works with."""

    networks: Networks
    learner: Learner
    optimizer: Any
    scheduler: Any
    tok: Any
    rollouts: Rollouts
    scorer: Scorer


@dataclass(frozen=True)
class Plan:
    """What a loop does."""

    asks: Sequence[Ask]
    batch: int
    rows: int
    """Replies that are in one forward pass while nothing is learnt."""
    steps: int
    seed: int
    update: Objective
    reward: Reward
    out: Path
    save_every: int
    keep: int
    log_every: int


def chosen(n: int, batch: int, step: int, seed: int) -> list[int]:
    """Which of n prompts step `step` (from 1) asks: the next `batch` of an endless row of shuffled passes."""
    found: list[int] = []
    place = (step - 1) * batch
    while len(found) < batch:
        epoch, start = divmod(place, n)
        order = list(range(n))
        random.Random(seed_of(seed, "order", epoch)).shuffle(order)
        taken = order[start : start + batch - len(found)]
        found += taken
        place += len(taken)
    return found


class Loop:
    """Runs from the step after `done` to the last. Metrics, samples and checkpoints appear in `plan.out`."""

    def __init__(self, parts: Parts, plan: Plan, controller: m.KLController, done: int = 0, watch: Any = None) -> None:
        self._parts, self._plan, self.controller, self._done, self._watch = parts, plan, controller, done, watch

    def run(self) -> None:
        """TrainingError for a loss that is not finite; weights and last checkpoint are then those before it."""
        plan = self._plan
        for step in range(self._done + 1, plan.steps + 1):
            told = self.step(step)
            if step % plan.log_every == 0 or step == plan.steps:
                self._write("metrics.jsonl", [told])
            if self._watch is not None:
                self._watch(told)
            if step % plan.save_every == 0 and step < plan.steps:
                self.save(step)

    def save(self, step: int) -> None:
        """A checkpoint of the state after a step."""
        p, home = self._parts, self._plan.out / "checkpoints"
        folder = home / f"checkpoint-{step}"
        _ppo_state.save(folder, step, p.networks, p.optimizer, p.scheduler, p.tok, self.controller)
        _ppo_state.keep_last(home, self._plan.keep)

    def step(self, step: int) -> dict[str, Any]:
        """One update and its figures."""
        parts, plan = self._parts, self._plan
        clock = [time.perf_counter()]
        asks = [plan.asks[i] for i in chosen(len(plan.asks), plan.batch, step, plan.seed)]
        samples = parts.rollouts.draw([a.ids for a in asks], seed_of(plan.seed, "rollout", step))
        clock.append(time.perf_counter())
        texts = [parts.tok.decode(s.reply, skip_special_tokens=True) for s in samples]
        given = parts.scorer.score([a.turns for a in asks], texts, [a.id for a in asks])
        scores = usable(given, [s.ended for s in samples], plan.reward)
        kept = [i for i, score in enumerate(scores) if score is not None]
        counted = [score for score in scores if score is not None]
        beta = self.controller.beta
        seen = experience(parts.networks, [samples[i] for i in kept], counted, beta, plan.update, plan.rows)
        clock.append(time.perf_counter())
        try:
            learnt = parts.learner.learn(seen, seed_of(plan.seed, "learn", step))
        except NotFinite as error:
            told = ", ".join(asks[i].id for i in kept[:8]) + (f" and {len(kept) - 8} more" if len(kept) > 8 else "")
            fix = "look at these prompts, or take a lower learning rate; the last checkpoint is good"
            raise TrainingError(f"not finite: {error}; the batch held {told}", where=f"step {step}", fix=fix) from None
        rate = parts.scheduler.get_last_lr()[0]
        parts.scheduler.step()
        clock.append(time.perf_counter())
        figures = _figures(seen, counted, beta)
        self.controller = self.controller.after(figures["kl"])
        if step % plan.log_every == 0:
            shown = zip(asks[:_SHOWN], texts, scores, samples, strict=False)
            rows = [
                {"step": step, "prompt": a.turns, "reply": text, "score": score, "ended": s.ended}
                for a, text, score, s in shown
            ]
            self._write("samples.jsonl", rows)
        spent = [round(b - a, 4) for a, b in pairwise(clock)]
        return {
            "step": step,
            **figures,
            **learnt,
            "unscored": len(samples) - len(kept),
            "learning_rate": rate,
            "episodes": step * plan.batch,
            **gap_of(parts.rollouts, seen, kept),
            **dict(zip(("seconds_rollout", "seconds_score", "seconds_learn"), spent, strict=True)),
        }

    def _write(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        with (self._plan.out / name).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(plain(row), ensure_ascii=False) + "\n" for row in rows)


def _figures(seen: Experience, scores: Sequence[float], beta: float) -> dict[str, Any]:
    """An update's figures before it learns: scores are means over replies; KL is of a whole reply, in nats."""
    n = len(scores)
    average = math.fsum(scores) / n
    lengths = seen.real.sum(1).float()
    k1, k3 = (float((m.kl(seen.logp, seen.ref, e) * seen.real).sum()) / n for e in ("k1", "k3"))
    return {
        "score": average,
        "score_std": math.sqrt(math.fsum((s - average) ** 2 for s in scores) / n),
        "kl": k1,
        "kl_k3": k3,
        "kl_weight": beta,
        "objective": average - beta * k1,
        "entropy": float(m.mean(seen.entropy, seen.real)),
        "explained_variance": m.explained_variance(seen.values, seen.returns, seen.real),
        "length": float(lengths.mean()),
        "length_max": float(lengths.max()),
        "ended": sum(s.ended for s in seen.samples) / n,
        "tokens": int(lengths.sum()),
    }


def gap_of(rollouts: Rollouts, seen: Experience, kept: Sequence[int]) -> dict[str, float]:
    """How far an engine's log-probabilities of what it drew are from ours, on average in nats; {} without an engine."""
    told: Sequence[Sequence[float]] | None = getattr(rollouts, "logp", None)
    if told is None:
        return {}
    far = [
        abs(theirs - ours)
        for row, i in enumerate(kept)
        for theirs, ours in zip(told[i], seen.logp[row].tolist(), strict=False)
    ]
    gap = math.fsum(far) / len(far)
    if gap > _FAR:
        what = f"the engine's log-probabilities are {gap:.2f} nats from the policy's: it serves other weights"
        raise TrainingError(what, where="rollout", fix="rollout.engine: transformers; and report it")
    return {"engine_gap": gap}
