"""From a conversation to tokens, as the model's own tokenizer and chat template have it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from tenet.engines import _choices
from tenet.templates import role_safe

_SHORT = 2000
"""Characters of context up to which the tokens of choices are remembered."""


class Fault(Exception):
    """This one question cannot be answered: (fault, detail)."""


class Prompts:
    """Renders, tokenises and decodes for one model."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer: Any = tokenizer
        template = str(tokenizer.chat_template or "")
        # all special tokens, and of the plain added ones those that the template writes (<think>)
        self.specials = {str(t) for t in tokenizer.all_special_tokens}
        for token in tokenizer.added_tokens_decoder.values():
            if token.special or (str(token).strip() and str(token) in template):
                self.specials.add(str(token))
        self.turn_end: int | None = self._end_of_turn() if template else tokenizer.eos_token_id
        """What closes an assistant's turn."""
        self._remembered = lru_cache(4096)(self._paths)

    def render(
        self, messages: tuple[tuple[str, str], ...], text: str | None, answered: bool = False
    ) -> tuple[str, list[int]]:
        """(text, tokens) of what the model reads; content cannot add a turn. Fault if refused.

        `answered`: the last turn is the assistant's, and no other is to come.
        """
        if text is not None:
            return text, self._tokenizer.encode(text, add_special_tokens=True)
        if not self._tokenizer.chat_template:
            raise Fault("refused", "the model has no chat template: send raw text")
        turns = [{"role": role, "content": role_safe(said, self.specials)} for role, said in messages]
        try:
            how: dict[str, Any] = {"tokenize": False, "add_generation_prompt": not answered}
            rendered = self._tokenizer.apply_chat_template(turns, **how)
        except Exception as error:
            told = f"the chat template refuses the conversation: {error}"
            raise Fault("refused", told[:500]) from None
        return rendered, self._encode(rendered)

    def decode(self, ids: list[int]) -> str:
        """The text of drawn tokens, special ones left out."""
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def paths(self, rendered: str, choices: tuple[str, ...]) -> list[_choices.Path]:
        """The tokens of every choice behind the text, so closed that choices exclude each other."""
        # nothing merges across a special token: what stands from the last one on is context enough
        tail = rendered[max((rendered.rfind(s) for s in self.specials), default=0) :] or rendered
        return (self._remembered if len(tail) < _SHORT else self._paths)(tail, choices)

    def _paths(self, tail: str, choices: tuple[str, ...]) -> list[_choices.Path]:
        paths = _choices.tokens_in_context(self._encode, tail, choices)
        return _choices.told_apart(paths, self.turn_end)

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _end_of_turn(self) -> int | None:
        """What the template writes behind an assistant's words; the tokenizer's eos may differ."""
        turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "@@"}]
        try:
            rendered = self._tokenizer.apply_chat_template(turns, tokenize=False)
            first = self._encode(rendered.rpartition("@@")[2])[:1]
        except Exception:
            first = []
        known = bool(first) and first[0] in self._tokenizer.all_special_ids
        return first[0] if known else self._tokenizer.eos_token_id
