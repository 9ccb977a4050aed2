"""Builds nano from a seed: corpus, tokenizer, pretraining, instruction tuning, upcycling."""

# The packages at this edge ship no complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nano import tasks
from nano.tasks import Dialogue
from trainers._core import Example, Settings, Step, train
from trainers.moe import losses, upcycle
from trainers.moe._coach import Coach
from trainers.moe.schedule import Warmup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3Config

VOCABULARY = 2048
SPECIAL = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "<|assistant|>{% generation %}{{ m['content'] }}<|end|>{% endgeneration %}"
    "{% else %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# A tag, a word with its space, digits one by one, punctuation, white space.
_PIECES = r"</?[a-z_]+>\n?| ?[A-Za-z]+| ?[0-9]| ?[^\sA-Za-z0-9]|\s+"


PASSAGES = 30_000
"""What the tokenizer is learnt on. A small part of it has nearly all words already."""


def tokenizer(seed: int = 0, passages: int = PASSAGES) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer learnt on the world's texts; any text can be encoded."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    rng = random.Random(f"tokenizer {seed}")
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    texts = (text for _ in range(passages) for text in (tasks.plain(rng), *(t for _, t in tasks.exercise(rng))))
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(s, special=True) for s in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        model_max_length=2048,  # nosec B106 # no secret
    )
    made.chat_template = CHAT_TEMPLATE
    return made


def config(vocabulary: int = VOCABULARY) -> Qwen3Config:
    """Qwen3 at toy size: 1.7M weights."""
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=192,
        intermediate_size=288,
        num_hidden_layers=5,
        # Few wide heads: attention's backward pass on CPU costs by the head.
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )


class Coder:
    """Turns conversations and passages into training examples, as the chat template would render them."""

    def __init__(self, tok: PreTrainedTokenizerFast) -> None:
        self._raw = tok.backend_tokenizer
        _, self.end, system, user, assistant = (int(tok.vocab[s]) for s in SPECIAL)
        self._role = {"system": system, "user": user, "assistant": assistant, "given": assistant}

    def dialogues(self, made: list[Dialogue]) -> Iterator[Example]:
        """Conversations; only the assistant's turns are learnt ("given" replies are read)."""
        coded = iter(self._raw.encode_batch_fast([t for d in made for _, t in d]))
        for dialogue in made:
            ids: list[int] = []
            learn: list[int] = []
            for role, _ in dialogue:
                turn = [*next(coded).ids, self.end]
                ids += [self._role[role], *turn]
                learn += [0, *[int(role == "assistant")] * len(turn)]
            yield Example(ids, learn)

    def passages(self, texts: list[str]) -> Iterator[Example]:
        """Plain text; every token is learnt."""
        for code in self._raw.encode_batch_fast(texts):
            ids = [*code.ids, self.end]
            yield Example(ids, [1] * len(ids))


def endless(
    make: Callable[[random.Random], Any], code: Callable[[list[Any]], Iterable[Example]], seed: str
) -> Iterator[Example]:
    """Fresh examples for ever, made and coded 2,048 at a time."""
    rng = random.Random(seed)
    for _ in count():
        yield from code([make(rng) for _ in range(2048)])


def enough(examples: Iterable[Example], tokens: float) -> Iterator[Example]:
    """Examples up to so many tokens: a short training need not wait for a whole window of them."""
    total = 0
    for example in examples:
        yield example
        total += len(example.ids)
        if total >= tokens:
            return


BASE_TOKENS = 2_000_000
ASSISTANT_TOKENS = 24_000_000
MOE_TOKENS = 1_200_000
MOE = upcycle.Settings(experts=8, top_k=2, reinit=0.25)
"""A quarter of each expert's inner units is drawn anew: between copies there would be nothing to choose."""
MOE_ROUTING = losses.Settings(
    warmup=Warmup(steps=60, aux_start=0.1, aux_end=0.01, router_lr=3e-3, freeze_experts=False)
)
Watch = Callable[[str, Any, Step], None]
"""Told the stage's name, its model and where it stands, after every step."""


def build(out: Path, seed: int = 0, scale: float = 1.0, watch: Watch | None = None) -> None:
    """Trains the stages `base`, `assistant` and `assistant-moe` into folders of `out`, as bf16 safetensors.

    `scale` shrinks the training, for tests. One core or many, the examples and their order are the
    same; the weights differ by rounding.
    """
    import torch
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn
    from transformers import Qwen3ForCausalLM

    tok = tokenizer(seed, min(PASSAGES, int(20 * scale * PASSAGES)))
    coder = Coder(tok)
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(config(len(tok)))
    stages = (
        ("base", BASE_TOKENS, endless(tasks.plain, coder.passages, f"base {seed}")),
        ("assistant", ASSISTANT_TOKENS, endless(tasks.exercise, coder.dialogues, f"skills {seed}")),
    )
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn()) as bars:
        for name, tokens, examples in stages:
            settings = Settings(tokens=int(tokens * scale), batch_tokens=4096, seed=seed)
            bar = bars.add_task(name, total=settings.tokens)

            def step(at: Step, bar: Any = bar, name: str = name) -> None:
                bars.update(bar, completed=at.tokens, description=f"{name} loss {at.loss:.3f}")
                if watch is not None:
                    watch(name, model, at)

            train(model, examples, settings, step)
            save(model, tok, out / name)
    mixture(out / "assistant", out, seed, scale, watch)


def mixture(dense: Path, out: Path, seed: int = 0, scale: float = 1.0, watch: Watch | None = None) -> None:
    """Trains the stage `assistant-moe` into a folder of `out`: the dense assistant upcycled, then trained on.

    Every step's loss and routing are written to `assistant-moe.jsonl` beside it.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tok = AutoTokenizer.from_pretrained(dense)  # nosec B615 # a local folder
    model = upcycle.upcycle(
        AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32),  # nosec B615 # a local folder
        MOE.model_copy(update={"seed": seed}),
    )
    # A rate below the dense stages': most of what the experts know is kept.
    settings = Settings(tokens=int(MOE_TOKENS * scale), batch_tokens=4096, lr=5e-4, matrix_lr=0.002, seed=seed)
    examples = enough(endless(tasks.exercise, Coder(tok).dialogues, f"mixture {seed}"), 1.3 * settings.tokens)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "assistant-moe.jsonl").open("w", encoding="utf-8", buffering=1) as lines:

        def step(at: Step) -> None:
            lines.write(json.dumps({"tokens": at.tokens, "loss": at.loss, **at.router}) + "\n")
            if watch is not None:
                watch("assistant-moe", model, at)

        coach = Coach(model, MOE_ROUTING)
        train(model, examples, settings, step, coach)
        coach.close()
    save(model, tok, out / "assistant-moe")


def save(model: Any, tok: PreTrainedTokenizerFast, folder: Path) -> None:
    """A stage as transformers and vLLM load it."""
    import torch

    kept = {k: v.to(torch.bfloat16) for k, v in model.state_dict().items() if not _tied(model, k)}
    model.config.dtype = torch.bfloat16
    model.save_pretrained(folder, state_dict=kept)
    tok.save_pretrained(folder)


def _tied(model: Any, name: str) -> bool:
    """Whether a weight is the embedding's again; base and assistant were saved with both."""
    return name == "lm_head.weight" and model.config.model_type == "qwen3_moe" and model.config.tie_word_embeddings
