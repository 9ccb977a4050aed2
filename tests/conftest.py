"""What several tests share: a tiny random model and its adapter, two vLLM engines, and which files keep together."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Before torch is imported: two test processes on two cores, each with two threads, spend their time waiting in turns.
os.environ.setdefault("OMP_NUM_THREADS", "1")

TOGETHER = {"test_judges_on_nano": "nano", "test_loop": "nano", "test_engine_vllm": "tiny", "test_attack": "tiny"}
"""Files that share an engine, which takes longer to start than most of their tests to run."""
LONG = (
    *("nano", "tiny", "test_real_engines", "test_train_command", "test_pipeline", "test_adapters_trainers"),
    *("test_nano", "test_selftest", "test_nodes", "test_page", "test_ppo_vllm", "test_adapters_save"),
)
"""What starts first, so that no process is left alone with it at the end."""

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|end|>{% endgeneration %}"
    "{% else %}{{ m['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIALS = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    groups = {item: TOGETHER.get(item.path.stem, item.path.stem) for item in items}
    items.sort(key=lambda item: LONG.index(groups[item]) if groups[item] in LONG else len(LONG))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`--dist loadfile`, which keeps each file in one process, and files of one engine too."""
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return TOGETHER.get(Path(file).stem, file)

    return Together(config, log) if config.getvalue("dist") == "loadfile" else None


def make_tiny_model(
    folder: Path,
    *,
    vocab: int = 600,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    head_dim: int = 32,
    seed: int = 0,
) -> Path:
    """A random Qwen3 with a byte-level BPE tokenizer, saved into a folder.

    Its weights are spread so wide that next-token distributions are far from even: a score of the
    wrong token shows.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    draw = random.Random(seed)
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 3))) for _ in range(max(400, 2 * vocab))]
    lines = [" ".join(draw.choices(words, k=12)) + " 1 2 3 4 5 6 7 8 9 A B (A) (B)." for _ in range(max(400, vocab))]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(lines, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<|end|>",
        additional_special_tokens=SPECIALS[1:],
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=(len(fast) + 31) // 32 * 32,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2),
        head_dim=head_dim,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=fast.eos_token_id,
        bos_token_id=None,
        pad_token_id=fast.eos_token_id,
    )
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "embed" in name:
                weight.normal_(0, 0.3)
            elif weight.ndim == 2:
                weight.normal_(0, 1.5 / weight.shape[1] ** 0.5)
    model.generation_config.eos_token_id = fast.eos_token_id
    model.save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Qwen3 of 50,000 weights."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_adapted(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a LoRA adapter on the tiny model, the same merged into it)"""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("adapted")
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    torch.manual_seed(1)
    model: Any = get_peft_model(plain, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.1)
    model.save_pretrained(folder / "lora")
    model.merge_and_unload().save_pretrained(folder / "merged")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder / "merged")
    return folder / "lora", folder / "merged"


@pytest.fixture(scope="session")
def vllm_engine(tiny_model: Path, tiny_adapted: tuple[Path, Path]) -> Iterator[Any]:
    """The tiny model under its LoRA adapter, in vLLM in a Ray actor of its own.

    It computes in float32, so that scores can be held against transformers with the adapter merged. Ask it through
    `asyncio.run`: it follows from one event loop to the next.
    """
    from tenet.engines.vllm import Settings, build

    how = {"dtype": "float32", "max_model_len": 1024, "kv_cache_gib": 0.25}
    engine = build(Settings.model_validate({"model": str(tiny_model), "lora": str(tiny_adapted[0]), **how}))
    yield engine
    asyncio.run(engine.close())


@pytest.fixture(scope="session")
def nano_engine() -> Iterator[Any]:
    """nano's assistant, served by vLLM: for claims about what a judge makes of a model that knows the task.

    Ask it through `asyncio.run`, as the other.
    """
    from tenet.engines import Request, Sampling
    from tenet.engines.vllm import Settings, build

    engine = build(Settings(model="nano:assistant", max_model_len=1024, kv_cache_gib=0.25))
    # in bfloat16 a first prompt this short meets AMX tiles that nobody asked the kernel for yet
    [first] = asyncio.run(engine.generate([Request(text="q", sampling=Sampling(max_tokens=4))]))
    assert first.fault is None
    yield engine
    asyncio.run(engine.close())
