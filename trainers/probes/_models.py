"""Stages in memory: what a model expects of a text, token by token, and what it replies."""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tenet.errors import SettingsError
from trainers.probes._checkpoint import Stage
from trainers.probes._texts import Sample

if TYPE_CHECKING:
    import torch

_ELEMENTS = 1 << 25
"""Logits in memory at a time: 128 MiB in float32."""


class Coded(NamedTuple):
    """A sample as token ids; those from `start` on are predicted."""

    ids: list[int]
    start: int


class Loaded:
    """A stage that runs: float32 weights, an adapter merged into its base, its tokenizer."""

    def __init__(self, stage: Stage, device: str = "cpu") -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        heads = stage.config.get("architectures") or [""]
        if not any("CausalLM" in h or "LMHead" in h or "ConditionalGeneration" in h for h in heads):
            raise SettingsError(
                f"is a {heads[0] or 'model of unknown kind'}, which predicts no tokens",
                where=stage.name,
                fix="a causal language model",
            )
        self.name, self.device = stage.name, torch.device(device)
        root = stage
        while root.base is not None:
            root = root.base
        model: Any = AutoModelForCausalLM.from_pretrained(root.folder, dtype=torch.float32)  # nosec B615 # a local folder
        for adapter in reversed(list(_adapters(stage))):
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, adapter.folder).merge_and_unload()
        self.model: Any = model.to(self.device).eval()
        own = (stage.folder / "tokenizer_config.json").exists()
        folder = stage.folder if own else root.folder
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)  # nosec B615 # a local folder
        self.window = int(getattr(self.model.config, "max_position_embeddings", 0) or 1 << 30)

    def close(self) -> None:
        """Lets go of the weights."""
        self.model = None
        gc.collect()

    @property
    def templated(self) -> bool:
        return bool(self.tokenizer.chat_template)

    def prompt_ids(self, sample: Sample) -> list[int]:
        """The conversation up to where the assistant speaks; without a chat template, its texts by blank lines."""
        if not sample.messages:
            first = self.tokenizer.bos_token_id
            return [] if first is None else [first]
        turns = [{"role": m.role, "content": m.content} for m in sample.messages]
        if self.templated:
            said = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        else:
            said = "\n\n".join(m.content for m in sample.messages) + "\n\n"
        return self.tokenizer(said, add_special_tokens=not self.templated)["input_ids"]

    def code(self, sample: Sample) -> Coded | None:
        """The sample's ids; None if nothing is left to predict, or if it does not fit the model's window."""
        before = self.prompt_ids(sample)
        reply = self.tokenizer(sample.reply, add_special_tokens=False)["input_ids"]
        start = len(before) or 1  # the first token of all has nothing before it
        ids = [*before, *reply]
        return Coded(ids, start) if start < len(ids) <= self.window else None

    def distributions(self, coded: Sequence[Coded]) -> Iterator[torch.Tensor]:
        """For each sample in order: log-probabilities [T, V] in nats for its predicted positions."""
        import torch

        width = int(self.model.config.get_text_config().vocab_size)
        at = 0
        while at < len(coded):
            batch = [coded[at]]
            longest = len(batch[0].ids)
            for one in coded[at + 1 : at + 16]:
                longest = max(longest, len(one.ids))
                if (len(batch) + 1) * longest * width > _ELEMENTS:
                    break
                batch.append(one)
            at += len(batch)
            with torch.no_grad():
                logits = self.model(**self._padded(batch), use_cache=False).logits
            for row, one in enumerate(batch):
                yield torch.log_softmax(logits[row, one.start - 1 : len(one.ids) - 1].float(), dim=-1)

    def _padded(self, batch: Sequence[Coded]) -> dict[str, torch.Tensor]:
        import torch

        longest = max(len(c.ids) for c in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        mask = torch.zeros(len(batch), longest, dtype=torch.long)
        for row, c in enumerate(batch):
            ids[row, : len(c.ids)] = torch.tensor(c.ids)
            mask[row, : len(c.ids)] = 1
        return {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}

    def reply_ids(
        self, samples: Sequence[Sample], max_tokens: int, temperature: float = 0.0, seed: int = 0, batch: int = 32
    ) -> list[list[int]]:
        """What the model replies to each conversation, as ids, the end token left out; temperature 0 is greedy."""
        import torch

        torch.manual_seed(seed)
        pad = next(t for t in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0) if t is not None)
        ends = self.model.generation_config.eos_token_id
        stops = set(ends if isinstance(ends, list) else [ends]) | {self.tokenizer.eos_token_id, pad}
        drawn: dict[str, Any] = {"do_sample": temperature > 0}
        if temperature > 0:
            drawn |= {"temperature": temperature, "top_p": 1.0, "top_k": 0}
        made: list[list[int]] = []
        for first in range(0, len(samples), batch):
            asked = [self.prompt_ids(s) or [pad] for s in samples[first : first + batch]]
            longest = max(len(ids) for ids in asked)
            if longest + max_tokens > self.window:
                what = f"a prompt of {longest} tokens and {max_tokens} more pass the window of {self.window}"
                raise SettingsError(what, where=self.name, fix="shorter prompts, or fewer new tokens")
            ids = torch.tensor([[pad] * (longest - len(a)) + a for a in asked], device=self.device)
            mask = torch.tensor([[0] * (longest - len(a)) + [1] * len(a) for a in asked], device=self.device)
            with torch.no_grad():
                out = self.model.generate(
                    input_ids=ids, attention_mask=mask, max_new_tokens=max_tokens, pad_token_id=pad, **drawn
                )
            for row in out[:, longest:].tolist():
                end = next((i for i, t in enumerate(row) if t in stops), len(row))
                made.append(row[:end])
        return made

    def replies(self, samples: Sequence[Sample], max_tokens: int, temperature: float = 0.0, seed: int = 0) -> list[str]:
        """The same as texts."""
        ids = self.reply_ids(samples, max_tokens, temperature, seed)
        return [str(self.tokenizer.decode(i, skip_special_tokens=True)).strip() for i in ids]


def _adapters(stage: Stage | None) -> Iterator[Stage]:
    while stage is not None:
        if stage.base is not None:
            yield stage
        stage = stage.base


def same_tokens(a: Loaded, b: Loaded) -> bool:
    """Whether two stages mean the same text by the same ids, so that their distributions can be compared."""
    return a.tokenizer.get_vocab() == b.tokenizer.get_vocab()
