"""What every contender sends: the four calls of a record, as messages and as templates. Standard library only.

Imported in each peer's own environment. The wording is tenet's (generators/*.txt, judges/pairwise.txt); peers that
send one templated message a call get the same text in one message.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STAGES = ("reply", "critique", "revision", "verdict")
Row = Mapping[str, str]


@dataclass(frozen=True)
class Wording:
    """One principle's texts, put into the calls as tenet puts them."""

    critique: str
    revise: str
    choose: str
    max_tokens: int

    def asked(self, stage: str) -> str:
        """The user's turn that a stage adds."""
        return {
            "critique": f"Critique your last reply. {self.critique}\n"
            "Write only the critique and do not rewrite the reply yet.",
            "revision": f"Rewrite your last reply. {self.revise}\nWrite only the new reply.",
            "verdict": "<conversation>\n{prompt}\n</conversation>\n<reply_a>\n{reply}\n</reply_a>\n"
            "<reply_b>\n{revision}\n</reply_b>\n" + f"{self.choose}\nOptions: A or B.\nThe answer is:",
        }[stage]

    def messages(self, stage: str, row: Row) -> list[dict[str, str]]:
        """The chat of a stage, as tenet sends it: critique and revision go on where the reply ended."""
        if stage == "verdict":
            return [_user(self.asked(stage).format(**row))]
        chat = [_user(row["prompt"])]
        if stage != "reply":
            chat += [{"role": "assistant", "content": row["reply"]}, _user(self.asked("critique"))]
        if stage == "revision":
            chat += [{"role": "assistant", "content": row["critique"]}, _user(self.asked(stage))]
        return chat

    def template(self, stage: str) -> str:
        """The same text as one Jinja template, for peers that send one message a call."""
        name = {key: "{{ " + key + " }}" for key in ("prompt", *STAGES)}
        if stage == "reply":
            return name["prompt"]
        if stage == "verdict":
            return self.asked(stage).format(**name)
        critique = f"{name['prompt']}\n\n{name['reply']}\n\n{self.asked('critique')}"
        return critique if stage == "critique" else f"{critique}\n\n{name['critique']}\n\n{self.asked('revision')}"

    def sampling(self, stage: str) -> dict[str, Any]:
        """The fields of an OpenAI request beside model and messages."""
        if stage == "verdict":
            return {"max_tokens": 1, "temperature": 0.0, "logprobs": True, "top_logprobs": 20}
        return {"max_tokens": self.max_tokens, "temperature": 1.0}

    def constitution(self) -> str:
        """A constitution of this principle alone, as tenet reads it."""
        principle = {"id": "only", "critique": self.critique, "revise": self.revise, "choose": self.choose}
        whole = {"name": "one", "version": "1", "serves": "A comparison of speed.", "language": "en"}
        return json.dumps({**whole, "principles": [{**principle, "score": self.choose}]})


ENDPOINT = Wording(
    critique="Restate the question in one line, then name each part of it that your reply leaves open.",
    revise="Answer every part of the question, the most important part first.",
    choose="Which reply answers every part of what was asked?",
    max_tokens=512,
)
NANO = Wording(
    critique="Point out any sentence that insults the reader.",
    revise="Leave out any sentence that insults the reader.",
    choose="Which reply has no sentence that insults the reader?",
    max_tokens=64,
)


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def prompts(records: int) -> list[str]:
    """Some 90 words each, told apart by their first word."""
    return [f"item-{i:06} " + "How do I keep a wooden board clean? " * 20 for i in range(records)]


def arguments() -> argparse.Namespace:
    """The command line that all contenders share."""
    options = argparse.ArgumentParser()
    options.add_argument("--base-url", required=True)
    options.add_argument("--records", type=int, required=True)
    options.add_argument("--concurrency", type=int, required=True)
    options.add_argument("--folder", type=Path, required=True, help="kept between a kill and the next start")
    return options.parse_args()


def tell(records: Iterable[Any]) -> None:
    """The last line of a contender: when it had its records, and how many whole ones."""
    whole = sum(1 for record in records if record)
    print(json.dumps({"done": time.time(), "records": whole}), flush=True)
