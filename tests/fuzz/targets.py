"""What is fuzzed: each target takes bytes, and only an error of tenet's own family may come out of it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path

import constitution
from constitution import importers
from generators import prompts
from judges import _parse, pairs_file
from judges.agreement import votes as votes_file
from service.recipe import Recipe, open_recipe
from tenet import _yaml
from tenet.errors import TenetError
from tenet.records import Dropped, Frozen, Prompt
from tenet.settings import assemble

Target = Callable[[bytes], None]
RECIPE = "prompts: {path: p.jsonl}\nconstitution: harmless\nmodels: {m: {kind: scripted}}\n"


@contextlib.contextmanager
def written(data: bytes, name: str) -> Generator[Path]:
    """The bytes as a file of that name, in a folder of its own."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        yield path


def encode(record: Frozen) -> None:
    """What was read must be fit to be written: no half characters, no numbers that JSON lacks."""
    record.model_dump_json().encode()


def read_constitution(data: bytes) -> None:
    """A constitution's YAML."""
    with written(data, "mine.yaml") as path, contextlib.suppress(TenetError):
        encode(constitution.load(path))


def read_recipe(data: bytes) -> None:
    """A recipe's YAML, with all that it names."""
    with written(data, "recipe.yaml") as path, contextlib.suppress(TenetError):
        encode(open_recipe(path).recipe)


def read_overrides(data: bytes) -> None:
    """Lines of `key=value` put over a small recipe, as the command line hands them down."""
    overrides = data.decode("utf-8", "surrogateescape").split("\n")
    with contextlib.suppress(TenetError):
        encode(assemble(Recipe, _yaml.parse(RECIPE, ""), overrides))


def read_principles(data: bytes) -> None:
    """Other projects' JSON lists of principles."""
    with written(data, "list.json") as path, contextlib.suppress(TenetError):
        encode(importers.read([path]))


def read_prompts(data: bytes) -> None:
    """A prompts file as JSON lines, as text and as dialogues."""
    for name, kind in (("p.jsonl", "jsonl"), ("p.txt", "text"), ("p.jsonl", "hh"), ("p", "auto")):
        with written(data, name) as path:
            _prompts(path, kind)


def read_gzip(data: bytes) -> None:
    """The same bytes under a name that ends in .gz."""
    with written(data, "p.jsonl.gz") as path:
        _prompts(path, "auto")
    with written(data, "v.csv.gz") as path, contextlib.suppress(TenetError):
        votes_file.read(str(path))


def read_parquet(data: bytes) -> None:
    """A Parquet file of prompts, of pairs and of votes."""
    with written(data, "p.parquet") as path:
        _prompts(path, "auto")
        _tables(path)


def read_pairs_and_votes(data: bytes) -> None:
    """A file of pairs or of votes as JSON lines, as one JSON document, and as CSV."""
    for end in ("jsonl", "json", "csv"):
        with written(data, f"t.{end}") as path:
            _tables(path)


def read_verdict(data: bytes) -> None:
    """A judge's words; what stands behind the first NUL was shown to it."""
    text, _, shown = data.decode("utf-8", "replace").partition("\0")
    for cut in (False, True):
        label, score = _parse.verdict(text, [shown], cut), _parse.score(text, [shown], cut)
        low = text.lower()
        words = {"A": ("a",), "B": ("b",), "tie": ("tie", "neither", "both"), "invalid": ("",), "refused": ("",)}
        assert any(word in low for word in words[label]), label
        assert score is None or 1 <= score <= 10


def _prompts(path: Path, kind: str) -> None:
    settings = {"path": str(path), "kind": kind}
    with contextlib.suppress(TenetError):
        prompts.check(assemble(prompts.Settings, settings))
    lenient = assemble(prompts.Settings, {**settings, "bad_rows": "drop", "dedup": "none"})
    items: list[tuple[int, Prompt | Dropped]] = []
    with contextlib.suppress(TenetError):
        items.extend(prompts.stream(lenient))
        census = prompts.check(lenient)
        assert census.rows == len(items) == census.usable + sum(census.dropped.values())
    assert [ordinal for ordinal, _ in items] == list(range(len(items)))
    for _, item in items:
        encode(item)


def _tables(path: Path) -> None:
    with contextlib.suppress(TenetError):
        for pair in pairs_file.read(path):
            encode(pair)
    for duplicates in ("last", "majority"):
        with contextlib.suppress(TenetError):
            votes = votes_file.read(str(path), duplicates)
            assert votes.items == sorted(set(votes.items))
            assert len(votes.item) == len(votes.verdict) == len(votes.p_a)
            "".join([*votes.items, *votes.raters, *votes.slices]).encode()


TARGETS: dict[str, Target] = {
    "constitution": read_constitution,
    "recipe": read_recipe,
    "overrides": read_overrides,
    "principles": read_principles,
    "prompts": read_prompts,
    "gzip": read_gzip,
    "parquet": read_parquet,
    "tables": read_pairs_and_votes,
    "verdict": read_verdict,
}
