"""Label sets over HTTP: blind, shared out by design, nothing lost or doubled, and a report as labels come in."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from judges.agreement import votes as votes_file
from judges.agreement.measure import measure
from judges.agreement.rules import Rules
from nano import pairs as nano_pairs
from tests.api_server import RECIPE, process, run_ends, serving

PAIRS = list(nano_pairs.rows(40, 3))
BODY = [{"id": p["id"], "prompt": p["prompt"], "a": p["a"], "b": p["b"]} for p in PAIRS]
GOLD = {p["id"]: p["labels"]["oracle"] for p in PAIRS}
TEXTS = {p["id"]: (p["a"], p["b"]) for p in PAIRS}
IDS = {frozenset(texts): id for id, texts in TEXTS.items()}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("labels")


@pytest.fixture(scope="module")
def client(place: Path) -> Iterator[httpx.Client]:
    with serving(place) as made:
        yield made


def make(client: httpx.Client, name: str, **more: Any) -> dict[str, Any]:
    return client.post("/v1/labels", json={"name": name, "pairs": BODY, **more}).raise_for_status().json()


def following(client: httpx.Client, name: str, rater: str) -> dict[str, Any] | None:
    answer = client.post(f"/v1/labels/{name}/next", params={"rater": rater}).raise_for_status()
    return answer.json()["pair"]


def give(client: httpx.Client, name: str, rater: str, item: str, label: str) -> httpx.Response:
    body = {"item": item, "label": label, "seconds": 2.5}
    return client.post(f"/v1/labels/{name}/labels", params={"rater": rater}, json=body)


def id_of(pair: dict[str, Any]) -> str:
    """The pair's own id, which raters are not told; for an attention check ""."""
    return IDS.get(frozenset((pair["left"], pair["right"])), "")


def right(pair: dict[str, Any]) -> str:
    """What the oracle says, as the rater sees it; for a check, the reply that is in its own order."""
    if not (id := id_of(pair)):
        known = {t for texts in TEXTS.values() for t in texts}
        return "left" if pair["left"] in known else "right"
    return "left" if pair["left"] == TEXTS[id][GOLD[id] == "B"] else "right"


def label_all(client: httpx.Client, name: str, rater: str, most: int = 1000) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []
    while len(seen) < most and (pair := following(client, name, rater)):
        give(client, name, rater, pair["item"], right(pair)).raise_for_status()
        seen.append(pair)
    return seen


def votes(client: httpx.Client, name: str, **params: Any) -> list[dict[str, Any]]:
    text = client.get(f"/v1/labels/{name}/votes", params=params).raise_for_status().text
    return [json.loads(line) for line in text.splitlines()]


def test_labels_are_blind_and_sides_are_random(client: httpx.Client) -> None:
    make(client, "blind", overlap=1.0, raters=2, attention=0)
    seen = {rater: label_all(client, "blind", rater) for rater in ("ann", "bob")}
    assert [len(s) for s in seen.values()] == [40, 40]
    for pairs in seen.values():
        assert all(set(p) == {"item", "prompt", "left", "right"} for p in pairs)
        assert not any(id in str(p) for p in pairs for id in GOLD)
        swapped = sum(p["left"] == TEXTS[id_of(p)][1] for p in pairs)
        assert 10 < swapped < 30
    sides = [{id_of(p): p["left"] for p in s} for s in seen.values()]
    assert 5 < sum(sides[0][i] != sides[1][i] for i in GOLD) < 35
    # Whatever side a pair stood on, the stored label is of the pair's own a and b.
    assert {(v["item"], v["verdict"]) for v in votes(client, "blind")} == set(GOLD.items())
    assert following(client, "blind", "ann") is None
    third = following(client, "blind", "cy")
    assert third is None  # every pair has the two labels that were wanted


def test_pairs_are_shared_out_with_the_overlap_that_was_planned(client: httpx.Client) -> None:
    made = make(client, "overlap", overlap=0.25, raters=3, attention=0, seed=4)
    assert (made["pairs"], made["wanted"]) == (40, 30 + 10 * 3)
    raters = ("ann", "bob", "cy", "dee")
    ended: set[str] = set()
    while len(ended) < len(raters):
        for rater in raters:
            if not label_all(client, "overlap", rater, most=1):
                ended.add(rater)
    counts = Counter(v["item"] for v in votes(client, "overlap"))
    assert sorted(Counter(counts.values()).items()) == [(1, 30), (3, 10)]
    assert client.get("/v1/labels/overlap/progress").json()["done"] == 40


def test_attention_checks_come_to_everyone_and_leave_the_votes(client: httpx.Client) -> None:
    make(client, "checked", overlap=1.0, raters=2, attention=0.1)
    good = label_all(client, "checked", "good")
    for _ in good:
        pair = following(client, "checked", "bad")
        assert pair is not None
        wrong = {"left": "right", "right": "left"}[right(pair)]
        give(client, "checked", "bad", pair["item"], wrong).raise_for_status()
    checks = [i for i, p in enumerate(good) if not id_of(p)]
    assert len(checks) == 4
    assert checks[0] > 0
    raters = {r["rater"]: r for r in client.get("/v1/labels/checked/progress").json()["raters"]}
    assert (raters["good"]["passed"], raters["good"]["checks"]) == (4, 4)
    assert (raters["bad"]["passed"], raters["bad"]["checks"]) == (0, 4)
    assert raters["good"]["seconds"] == 2.5
    assert {v["rater"] for v in votes(client, "checked")} == {"good", "bad"}
    assert {v["rater"] for v in votes(client, "checked", min_attention=0.5)} == {"good"}
    assert {v["item"] for v in votes(client, "checked")} == set(GOLD)


def test_undo_change_and_repeat(client: httpx.Client) -> None:
    make(client, "undo", overlap=0, attention=0)
    one = following(client, "undo", "ann")
    assert one == following(client, "undo", "ann")  # the same pair until it is labelled
    other = following(client, "undo", "bob")
    assert one is not None
    assert other is not None
    assert one["item"] != other["item"]
    assert give(client, "undo", "cy", one["item"], "left").status_code == 409  # never shown to them
    assert client.post("/v1/labels/undo/undo", params={"rater": "ann"}).status_code == 409
    assert give(client, "undo", "ann", one["item"], "left").json() == {"stored": True, "replaced": False}
    assert give(client, "undo", "ann", one["item"], "left").json() == {"stored": True, "replaced": False}
    assert give(client, "undo", "ann", one["item"], "tie").json() == {"stored": True, "replaced": True}
    assert [v["verdict"] for v in votes(client, "undo")] == ["tie"]
    assert client.post("/v1/labels/undo/undo", params={"rater": "ann"}).json() == one
    assert votes(client, "undo") == []
    assert following(client, "undo", "ann") == one
    give(client, "undo", "ann", one["item"], "right")
    mine = client.get("/v1/labels/undo/mine", params={"rater": "ann"}).json()
    assert [(m["item"], m["label"], m["judge"]) for m in mine["labels"]] == [(one["item"], "right", None)]
    assert client.post("/v1/labels/undo/next").status_code == 422  # without keys a rater says who they are
    assert client.post("/v1/labels", json={"name": "undo", "pairs": BODY}).status_code == 409


def test_many_raters_at_once_lose_and_double_nothing(client: httpx.Client) -> None:
    make(client, "crowd", overlap=0.5, raters=5, attention=0.1)
    given: list[tuple[str, str]] = []
    failures: list[BaseException] = []

    def work(rater: str) -> None:
        try:
            with httpx.Client(base_url=client.base_url, timeout=60, trust_env=False) as own:
                given.extend((rater, id_of(p)) for p in label_all(own, "crowd", rater))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(f"r{i}",)) for i in range(12)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert failures == []
    found = [(v["rater"], v["item"]) for v in votes(client, "crowd")]
    assert sorted(found) == sorted(g for g in given if g[1] in GOLD)
    assert len(set(found)) == len(found)
    counts = Counter(item for _, item in found)
    assert sorted(Counter(counts.values()).items()) == [(1, 20), (5, 20)]


def test_kill_9_in_the_middle_of_labelling_loses_no_label(tmp_path: Path) -> None:
    with process(tmp_path) as (server, client):
        make(client, "killed", overlap=1.0, raters=2, attention=0.1)
        seen = label_all(client, "killed", "ann", most=9)
        open_pair = following(client, "killed", "ann")
        server.kill()
        server.wait()
    with process(tmp_path) as (_, client):
        stored = client.get("/v1/labels/killed/mine", params={"rater": "ann"}).json()["labels"]
        assert [s["item"] for s in stored] == [s["item"] for s in seen]
        assert following(client, "killed", "ann") == open_pair
        assert len(label_all(client, "killed", "ann")) == 44 - 9


def test_a_runs_pairs_are_labelled_and_its_judge_is_measured(client: httpx.Client) -> None:
    client.post("/v1/runs", json={"recipe": RECIPE, "name": "judged", "limit": 12}).raise_for_status()
    run_ends(client, "judged")
    body = {"name": "of-run", "run": "judged", "n": 15, "overlap": 1.0, "raters": 2, "attention": 0, "reveal": True}
    made = client.post("/v1/labels", json=body).raise_for_status().json()
    assert client.get("/v1/agreement/of-run").status_code == 409
    for rater in ("ann", "bob"):
        while pair := following(client, "of-run", rater):
            side = "left" if len(pair["left"]) > len(pair["right"]) else "right"
            give(client, "of-run", rater, pair["item"], side)
    rows = votes(client, "of-run")
    assert Counter((r["kind"], r.get("order")) for r in rows) == {
        ("human", None): 2 * made["pairs"], ("judge", "ab"): made["pairs"], ("judge", "ba"): made["pairs"],
    }  # fmt: skip
    params = {"resamples": 200}
    figures = client.get("/v1/agreement/of-run", params=params).raise_for_status().json()
    gathered = votes_file.gather()
    for i, row in enumerate(rows):
        gathered.add(row, i)
    expected = measure(gathered.votes(), Rules(resamples=200)).figures
    assert figures == json.loads(json.dumps(expected))
    page = client.get("/v1/agreement/of-run/report", params=params)
    assert "<h1>" in page.text
    assert "sandbox" in page.headers["content-security-policy"]
    assert client.get("/v1/agreement/of-run/report", params={**params, "form": "markdown"}).text.startswith("# ")
    mine = client.get("/v1/labels/of-run/mine", params={"rater": "ann"}).json()["labels"]
    assert {m["judge"] for m in mine} & {"left", "right", "tie"}
