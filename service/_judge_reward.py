"""A judge's config opened as PPO's reward: direct RLAIF (Lee et al. 2023, section 2.3)."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import judges
from judges.rewards import RewardFunction, reward_function
from service import judging
from tenet.engines._cache import Budget, CachedEngine
from tenet.ledger import Calls


@contextmanager
def opened(config: Path, workspace: Path) -> Generator[RewardFunction]:
    """The judge as a reward function; its engines start with the first call and end here.

    Replies are stored in the workspace's `calls.sqlite`, so that a training that goes on pays for no score twice.
    SettingsError if the config is wrong, or its judge gives no scores of single replies.
    """
    plan = judging.open_config(config)
    built = plan.build_engines()
    unique = {id(e): e for e in built.values()}
    judge = dict(plan.config.judge)
    judges.open_scorer(judge, built, plan.constitution, plan.config.seed)
    workspace.mkdir(parents=True, exist_ok=True)
    try:
        with Calls(workspace / "calls.sqlite") as calls:
            limits = plan.config.limits
            budget = Budget.resume(calls, "reward", max_calls=limits.max_calls, max_tokens=limits.max_tokens)
            wrapped = {i: CachedEngine(e, calls, "reward", budget) for i, e in unique.items()}
            cached = {name: wrapped[id(e)] for name, e in built.items()}
            scorer = judges.open_scorer(judge, cached, plan.constitution, plan.config.seed)
            yield reward_function(scorer, name=Path(plan.source).stem)
    finally:
        for engine in unique.values():
            asyncio.run(engine.close())
