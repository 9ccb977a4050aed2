"""What a constitution is: the only place that knows the fields of its YAML."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Literal, get_args

from pydantic import Field, StringConstraints, model_validator

from tenet.records import Frozen, digest

Stage = Literal["critique", "revise", "choose", "score"]
STAGES: tuple[Stage, ...] = get_args(Stage)

Text = Annotated[str, StringConstraints(strip_whitespace=True)]
"""Text for people and models; braces, fences and template marks in it are only text."""
Id = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Tag = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Exemplar(Frozen):
    """A worked example: a dialogue (reply, critique, revision) or a choice (a, b, answer)."""

    prompt: Text
    """What the user said."""
    reply: Text = ""
    """Dialogue: the first reply."""
    critique: Text = ""
    """Dialogue: what is wrong with the reply."""
    revision: Text = ""
    """Dialogue: the reply rewritten."""
    a: Text = ""
    """Choice: the first reply."""
    b: Text = ""
    """Choice: the second reply."""
    answer: Literal["A", "B"] | None = None
    """Choice: which of the two is better."""
    principle: Id | None = None
    """The principle under which the example stands; its own, inside a principle."""

    @model_validator(mode="after")
    def _whole(self) -> Exemplar:
        dialogue = {"reply": self.reply, "critique": self.critique, "revision": self.revision}
        choice = {"a": self.a, "b": self.b, "answer": self.answer}
        for this, other in ((dialogue, choice), (choice, dialogue)):
            if any(this.values()) and any(other.values()):
                raise ValueError("is half a dialogue and half a choice: make two exemplars of it")
            if any(this.values()) and not all(this.values()):
                raise ValueError("lacks " + ", ".join(k for k, v in this.items() if not v))
        if not self.prompt or not any((*dialogue.values(), *choice.values())):
            raise ValueError("needs prompt, reply, critique, revision; or prompt, a, b, answer")
        return self

    @property
    def is_choice(self) -> bool:
        return self.answer is not None


class Principle(Frozen):
    """One rule, worded for each stage that may use it."""

    id: Id
    """Its name in records and reports; rewording keeps the id, and with it the draws."""
    title: Text = ""
    """A few words for tables."""
    critique: Text = ""
    """Tells a model what to look for in its reply: "Say where the reply …"."""
    revise: Text = ""
    """Tells a model what to make of its reply: "Keep …, and put … in its place"."""
    choose: Text = ""
    """The question for a pair: "Which reply …?"."""
    score: Text = ""
    """The question for one reply: "How well does the reply …?"; 1 is worst and 10 is best."""
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """How often it is drawn, relative to the others; to silence a principle, remove it."""
    tags: tuple[Tag, ...] = ()
    """What it is about, for reports and per-tag caps."""
    applies_when: tuple[Tag, ...] = ()
    """Prompt tags; if any are given, only prompts having one of them draw this principle."""
    conflicts_with: tuple[Id, ...] = ()
    """Principles that may ask for the opposite."""
    exemplars: tuple[Exemplar, ...] = ()
    """Worked examples of this principle."""
    source: Text = ""
    """Where it comes from."""
    since: Text = ""
    """The constitution's version that brought it."""

    @cached_property
    def hash(self) -> str:
        """Hash of all fields: an edit of any of them changes it."""
        return digest("principle", self.model_dump(mode="json"))

    def applies_to(self, tags: tuple[str, ...]) -> bool:
        """Whether a prompt with these tags may draw this principle."""
        return not self.applies_when or not set(self.applies_when).isdisjoint(tags)


class File(Frozen):
    """One YAML file as it is written, before its parents are joined in."""

    name: Id
    """How reports call it."""
    version: Text = ""
    """The author's own version, as text (in quotes)."""
    serves: Text = ""
    """Whom it serves: the people in whose interest the principles speak."""
    extends: str | tuple[str, ...] = ()
    """Parents: packaged names, or paths relative to this file."""
    remove: tuple[str, ...] = ()
    """Ids of inherited principles to leave out."""
    preamble: Text = ""
    """Said before every critique, revision and judgement; a file without one takes its parents'."""
    exemplars: tuple[Exemplar, ...] = ()
    """Worked examples for all prompts, after the parents'."""
    language: Text = ""
    """The language of the texts (BCP 47); unset: the parents', or "en"."""
    principles: tuple[Principle, ...] = ()
    """The file's own. One with an inherited id changes that principle: only the fields that are given."""

    @property
    def parents(self) -> tuple[str, ...]:
        return (self.extends,) if isinstance(self.extends, str) else self.extends


class Constitution(Frozen):
    """Principles, with what stands around them; parents are already joined in."""

    name: Id
    """How reports call it."""
    version: Text = ""
    """The author's own version, as text."""
    serves: Text = ""
    """Whom it serves: the people in whose interest the principles speak."""
    extends: tuple[str, ...] = ()
    """The parents, as the file names them."""
    preamble: Text = ""
    """Said before every critique, revision and judgement; a file without one takes its parents'."""
    exemplars: tuple[Exemplar, ...] = ()
    """Worked examples for all prompts, the parents' first."""
    language: Text = "en"
    """The language of the texts (BCP 47)."""
    principles: tuple[Principle, ...]
    """At least one, each id once; inherited ones first."""

    @cached_property
    def hash(self) -> str:
        """Hash of all content; how it was put together from parents does not matter."""
        rest = self.model_dump(mode="json", exclude={"principles", "extends"})
        return digest("constitution", rest, [p.hash for p in self.principles])

    @cached_property
    def by_id(self) -> dict[str, Principle]:
        """The principles by their ids."""
        return {p.id: p for p in self.principles}

    @property
    def dialogues(self) -> tuple[Exemplar, ...]:
        """The exemplars for critique and revision."""
        return tuple(e for e in self.exemplars if not e.is_choice)

    @property
    def choices(self) -> tuple[Exemplar, ...]:
        """The exemplars for choosing between two replies."""
        return tuple(e for e in self.exemplars if e.is_choice)
