"""The bundled constitution `nano`: one principle per named concept, written out from the lexicon."""

from __future__ import annotations

import yaml

from nano.lexicon import CONCEPTS, UNNAMED
from nano.world import Rule

HEAD = """\
# yaml-language-server: $schema=../../service/schemas/constitution.json
# The constitution of the bundled toy models; made by `python -m nano.constitution` from nano/lexicon.py.
# The wordings are those that the toy was trained on, and name the faults:
# lint: ignore negated
"""


def principle(rule: Rule) -> dict[str, object]:
    """A principle's YAML fields from a rule."""
    stages = ("critique", "revise", "choose", "score")
    return {"id": rule.concept, **{stage: rule.text(stage) for stage in stages}}


def text() -> str:
    """The YAML file."""
    principles = [principle(Rule(c.key, c.known[0])) for c in CONCEPTS if c.key not in UNNAMED]
    data = {
        "name": "nano",
        "version": "1",
        "serves": "Serves tests and the demo: it speaks about the faults of nano's small world.",
        "language": "en",
        "principles": principles,
    }
    return HEAD + yaml.safe_dump(data, sort_keys=False, width=100, allow_unicode=True)


if __name__ == "__main__":
    from pathlib import Path

    import constitution

    target = Path(constitution.__file__).parent / "files" / "nano.yaml"
    target.write_text(text(), encoding="utf-8")
