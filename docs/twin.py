"""The pipeline in one flat file: what `tenet generate` asks, draws and labels, less its concurrency, ledger and gates.

To read, not to use. A test holds it to the real thing: the same pairs with the same probabilities.

    python docs/twin.py
"""

import asyncio
import math
import random

import constitution
from constitution.draw import draw
from tenet.engines import Engine, Reply, Request, Sampling
from tenet.engines.scripted import ScriptedEngine
from tenet.records import Message, Prompt, seed_of
from tenet.templates import fence_safe, fill, load

RULES = constitution.load("harmless")
ASKED = [f"How do I clean {thing}?" for thing in ("a kettle", "wool", "a bike chain", "paint off glass", "old coins")]
SAMPLES, ROUNDS, SEED = 2, 2, 0


def script(request: Request) -> Reply:
    """Stands in for a model: texts and odds that depend on the request alone."""
    dice = random.Random(request.key(""))
    if request.choices:
        p = dice.uniform(0.1, 0.9)
        return Reply(choice_logprobs=(math.log(p), math.log(1 - p)))
    words = ("warm", "water", "soap", "slowly", "twice", "cloth", "rinse", "dry", "gently", "vinegar", "brush", "wait")
    return Reply(text=" ".join(dice.choices(words, k=12)).capitalize() + ".")


async def ask(engine: Engine, turns: list[tuple[str, str]], seed: int) -> str:
    """One reply, drawn at temperature 1 under its own seed, so that order and neighbours change nothing."""
    messages = tuple(Message(role=role, content=text) for role, text in turns)  # pyright: ignore[reportArgumentType]
    [reply] = await engine.generate([Request(messages=messages, sampling=Sampling(seed=seed))])
    return reply.text.strip()


async def revise(engine: Engine, prompt: Prompt, index: int, reply: str) -> str:
    """Critique and revision rounds (Bai et al. 2022, section 3.1): a principle drawn anew each round."""
    for round in range(1, ROUNDS + 1):
        [rule] = draw(RULES.principles, 1, SEED, prompt.id, "revise", index, round)
        turns = [("user", prompt.messages[-1].content), ("assistant", reply)]
        turns.append(("user", fill(load("generators", "critique.txt"), critique=rule.critique)))
        said = await ask(engine, turns, seed_of(SEED, prompt.id, "critique", index, round))
        turns += [("assistant", said), ("user", fill(load("generators", "revise.txt"), revise=rule.revise))]
        reply = await ask(engine, turns, seed_of(SEED, prompt.id, "revise", index, round))
    return reply


async def judge(engine: Engine, prompt: Prompt, a: str, b: str, key: str) -> float:
    """The probability that `a` is better: both slot orders are asked and averaged (Lee et al. 2023, section 2.1)."""
    [rule] = draw(RULES.principles, 1, SEED, prompt.id, "judge", key)
    fences = {"conversation", "system", "human", "assistant", "reply", "reply_a", "reply_b"}

    async def first_wins(first: str, second: str) -> float:
        text = fill(
            load("judges", "pairwise.txt"),
            conversation=f"<human>{fence_safe(prompt.messages[-1].content, fences)}</human>",
            a=fence_safe(first, fences),
            b=fence_safe(second, fences),
            question=rule.choose,
        )
        request = Request(messages=(Message(role="user", content=text),), choices=("A", "B"))
        [reply] = await engine.generate([request])
        odds = [math.exp(x) for x in reply.choice_logprobs if x is not None]
        return odds[0] / sum(odds)

    return (await first_wins(a, b) + 1.0 - await first_wins(b, a)) / 2


async def walk(engine: Engine, text: str) -> tuple[str, str, str, float] | None:
    """One prompt's chain: (prompt, chosen, rejected, p_chosen), or nothing where the judge sees no difference."""
    prompt = Prompt(messages=(Message(role="user", content=text),))
    lasts: list[str] = []
    for index in range(SAMPLES):
        first = await ask(engine, [("user", text)], seed_of(SEED, prompt.id, "respond", index))
        lasts.append(await revise(engine, prompt, index, first))
    key = "last 0-1"
    # A coin decides who is A: else a judge's taste for a slot would be confounded with the samples' order.
    x, y = lasts
    a, b = (x, y) if seed_of(SEED, prompt.id, "slots", key) & 1 else (y, x)
    p = await judge(engine, prompt, a, b, key)
    if abs(p - 0.5) < 1e-9:
        return None
    return (text, a, b, p) if p > 0.5 else (text, b, a, 1.0 - p)


async def pairs(engine: Engine) -> list[tuple[str, str, str, float]]:
    """All prompts' preferences, in order."""
    return [pair for text in ASKED if (pair := await walk(engine, text)) is not None]


if __name__ == "__main__":
    for prompt, chosen, rejected, p in asyncio.run(pairs(ScriptedEngine(script))):
        print(f"{prompt}\n  chosen ({p:.3f})  {chosen}\n  rejected        {rejected}")
