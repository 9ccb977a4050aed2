"""PPO's prompts as tokens, and the tokens that end a reply."""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tenet.engines._prompt import Fault, Prompts
from tenet.errors import DataError
from trainers._encode import PROMPT_TOO_LONG
from trainers._ppo_loop import Ask
from trainers._ppo_rollout import Ids
from trainers._rows import Rows


def prompts(rows: Rows, tok: Any, longest: int) -> list[Ask]:
    """The prompts as the policy will see them, each once; those that leave no room for a reply are dropped, counted.

    They are rendered as the engines do: no text in them can add a turn. DataError if none is left.
    """
    render, census = Prompts(tok), rows.census
    kept: list[Ask] = []
    places: dict[Ids, str] = {}
    for row in rows:
        turns: list[dict[str, str]] = row["prompt"]
        try:
            _, ids = render.render(tuple((t["role"], t["content"]) for t in turns), None)
        except Fault as fault:
            raise DataError(str(fault.args[1]), where=row["id"], fix="a conversation that the template takes") from None
        ask = Ask(row["id"], turns, tuple(ids))
        if len(ids) > longest:
            why = PROMPT_TOO_LONG
        else:
            # a row that a mixture's weight repeats is meant to be there twice; a run's rows share prompts by chance
            why = "prompt seen before" if places.setdefault(ask.ids, ask.id) != ask.id else ""
        if why:
            census.kept -= 1
            census.dropped[why] += 1
        else:
            kept.append(ask)
    if not kept:
        gone = ", ".join(f"{n} {why}" for why, n in census.dropped.items())
        where = ", ".join(name for name, _, _ in rows.sources)
        fix = f"prompts of at most {max(longest, 0)} tokens, more context, or a smaller rollout.max_tokens"
        raise DataError(f"no prompt is left of {census.read} ({gone})", where=where, fix=fix)
    return kept


def end_tokens(model: Any, tok: Any) -> list[int]:
    """Every token that ends a reply: the tokenizer's, the model's own, and what the template writes after a turn."""
    own: int | Iterable[int] | None = model.generation_config.eos_token_id
    listed = [own] if isinstance(own, int) else list(own or ())
    turn = Prompts(tok).turn_end
    return sorted({*listed, int(tok.eos_token_id), *([] if turn is None else [turn])})
