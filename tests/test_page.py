"""The page as people use it, in a real browser: runs, pairs, labels by keyboard, constitutions, hostile texts, keys."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import pytest

import constitution
from service.api.keys import Keys
from tests.api_server import RECIPE, SCRIPT, run_ends, serving, wait_for

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright drives the browser: pip install playwright")
CHROMIUM = os.environ.get("TENET_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome") or ""
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium: apt-get install chromium, or TENET_CHROMIUM=PATH")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
SLOW = RECIPE.replace('play"}', 'play", delay: 0.03}') + "limits: {in_flight: 2}\nseed: 5\n"
AXE = files("axe_playwright_python") / "axe.min.js"
VIEWS = (
    "runs", "runs/first", "new", "compare/first/again", "pairs", "pairs/first?stage=pairs", "pairs/first/3", "label",
    "label/views", "label/views?rater=bob", "constitutions", "constitutions/nano", "agreement", "agreement/views",
    "models", "nowhere",
)  # fmt: skip


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A service with two runs that have ended, and a set of their pairs with one rater's labels."""
    allow = {"scripts": [SCRIPT, "tenet.engines.scripted:echo"]}
    with serving(tmp_path_factory.mktemp("page"), allow=allow, limits={"jobs": 2}) as made:
        for name, more in (("first", []), ("again", ["judge.principles=3"])):
            body = {"recipe": RECIPE, "name": name, "limit": 12, "overrides": more}
            made.post("/v1/runs", json=body).raise_for_status()
        for name in ("first", "again"):
            assert run_ends(made, name)["state"] == "whole"
        made.post("/v1/labels", json={"name": "views", "run": "first", "n": 6, "overlap": 1.0, "raters": 2})
        pair = made.post("/v1/labels/views/next", params={"rater": "ann"}).json()["pair"]
        made.post("/v1/labels/views/labels", params={"rater": "ann"}, json={"item": pair["item"], "label": "left"})
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as p:
        made = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield made
        made.close()


class Page:
    """A tab of its own, which remembers whatever went wrong in it."""

    def __init__(self, browser: Any, client: httpx.Client, **context: Any) -> None:
        self.base, self.errors = str(client.base_url), list[str]()
        self.context = browser.new_context(**context)
        self.tab = self.context.new_page()
        self.tab.set_default_timeout(15_000)
        self.tab.on("pageerror", lambda e: self.errors.append(str(e)))
        self.tab.on("console", lambda m: self.errors.append(m.text) if m.type in ("error", "warning") else None)
        self.tab.on("dialog", lambda d: (self.errors.append(f"dialog {d.message}"), d.dismiss()))
        self.tab.on("request", self._asked)

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.base, "data:", "about:")):
            self.errors.append(f"asked for {request.url}")

    def go(self, address: str) -> Any:
        """The tab at an address, once its view stands."""
        self.tab.goto("about:blank")
        self.tab.goto(f"{self.base}/#/{address}")
        self.tab.locator("main[aria-busy=false]").wait_for()
        return self.tab

    def sees(self, selector: str, text: str) -> None:
        self.tab.locator(selector).filter(has_text=text).first.wait_for()


@pytest.fixture
def page(browser: Any, client: httpx.Client) -> Iterator[Page]:
    made = Page(browser, client)
    yield made
    made.context.close()
    assert made.errors == []


def test_a_run_is_started_from_a_recipe_that_is_checked_as_it_is_typed(page: Page, client: httpx.Client) -> None:
    tab = page.go("new")
    recipe = tab.get_by_label("Recipe (YAML)")
    recipe.fill(SLOW.replace("kind: pairwise", "kind: pairwize"))
    page.sees(".findings", "unknown kind 'pairwize'")
    assert tab.get_by_role("button", name="Start").is_disabled()
    tab.get_by_role("button", name=re.compile("line 8")).click()
    selected = "() => { const a = document.activeElement; return a.value.slice(a.selectionStart, a.selectionEnd) }"
    assert "pairwize" in tab.evaluate(selected)
    recipe.fill(SLOW)
    page.sees("h2", "What it would do")
    page.sees("td", "critique")
    tab.get_by_label("Name").fill("by-hand")
    tab.get_by_label("First N prompts").fill("16")
    tab.wait_for_function("() => !document.querySelector('button.main').disabled")
    tab.keyboard.press("Enter")
    page.sees("h1", "by-hand")
    page.sees(".state", "running")
    tab.wait_for_function("() => /^([1-9]|1[0-5]) of 16$/m.test(document.querySelector('.bars').innerText)")  # alive
    page.sees(".state", "whole")
    page.sees(".bars", "16 of 16")
    page.sees("a", "preference.parquet")
    run = client.get("/v1/runs/by-hand").json()
    for reasons in run["drops"]["pair"].values():
        for reason, n in reasons.items():
            page.sees(".bars", f"{reason}")
            page.sees(".bars .n", str(n))
    with tab.expect_download() as saved:
        tab.get_by_role("link", name="preference.jsonl").click()
    stored = client.get("/v1/runs/by-hand/files/preference.jsonl").content
    assert Path(saved.value.path()).read_bytes() == stored


def test_a_run_is_stopped_and_resumed(page: Page, client: httpx.Client) -> None:
    slower = SLOW.replace("0.03", "0.08").replace("seed: 5", "seed: 6")
    client.post("/v1/runs", json={"recipe": slower, "name": "stopped", "limit": 6}).raise_for_status()
    tab = page.go("runs/stopped")
    tab.wait_for_function("() => /^[1-5] of 6$/m.test(document.querySelector('.bars').innerText)")
    tab.get_by_role("button", name="Stop at once").focus()
    tab.keyboard.press("Enter")
    page.sees(".state", "stopped")
    assert 0 < client.get("/v1/runs/stopped").json()["progress"]["done"] < 6
    tab.get_by_role("button", name="Resume").click()
    page.sees(".state", "whole")
    page.sees(".bars", "6 of 6")


def test_two_runs_are_chosen_and_compared(page: Page) -> None:
    tab = page.go("runs")
    for name in ("first", "again"):
        tab.get_by_label(f"Choose {name} to compare").focus()
        tab.keyboard.press("Space")
    tab.get_by_role("button", name="Compare two").click()
    page.sees("h1", "Two runs")
    page.sees("code", "judge.principles: 2 -> 3")
    page.sees("p", "Both mean the same.")


def test_filters_stand_in_the_address_and_a_chain_shows_every_vote(page: Page, client: httpx.Client) -> None:
    rows = client.get("/v1/runs/first/rows", params={"stage": "preference"}).json()["rows"]
    dropped = client.get("/v1/runs/first/rows", params={"reason": "identical replies", "limit": 200}).json()["rows"]
    tab = page.go("pairs/first")
    tab.get_by_label("Dropped for").fill("identical replies")
    tab.keyboard.press("Enter")
    page.sees("main", f"{len(dropped)} shown, these are all")
    assert tab.url.endswith("#/pairs/first?reason=identical+replies")
    assert tab.locator(".list a").filter(has_text="identical replies").count() == len(dropped)
    tab.reload()
    page.sees(".list a", "identical replies")
    assert tab.get_by_label("Dropped for").input_value() == "identical replies"
    page.go("pairs/first?stage=preference")
    tab.locator(".list a").first.wait_for()
    tab.keyboard.press("j")
    tab.keyboard.press("Enter")
    page.sees("h1", f"first, prompt {rows[0]['ordinal']}")
    record = rows[0]["record"]
    article = tab.locator("article").filter(has_text="is preferred").first
    article.wait_for()
    said = [" ".join(t.split()) for t in article.locator(".said").all_inner_texts()]
    assert said[:2] == [" ".join(record["comparison"][k].split()) for k in "ab"]
    assert article.locator("mark").count() > 0
    shown = [line.split("\t") for line in article.locator("tbody tr").all_inner_texts()]
    votes = {(v["principle"], v["order"]): v for v in record["verdict"]["votes"]}
    assert {line[0] for line in shown} == {principle for principle, _ in votes}
    for principle, *said in shown:
        for order, cells in (("ab", said[:4]), ("ba", said[4:8])):
            vote = votes[principle, order]
            assert cells == [vote["label"], *(f"{x:.3f}" for x in (vote["p_a"], *vote["logprobs"]))]
    page.sees(".timeline .what", "round 1, critique under")
    if len(rows) > 1 and rows[1]["ordinal"] != rows[0]["ordinal"]:
        tab.keyboard.press("j")
        page.sees("h1", f"first, prompt {rows[1]['ordinal']}")
        assert tab.url.endswith("?stage=preference")


def test_two_raters_label_by_keyboard_and_the_agreement_follows(page: Page, client: httpx.Client) -> None:
    made = {"name": "twenty", "run": "first", "n": 20, "overlap": 1.0, "raters": 2, "attention": 0.1, "reveal": True}
    checks = 2
    wanted = client.post("/v1/labels", json=made).raise_for_status().json()["pairs"]
    tab, given = page.tab, dict[str, list[tuple[str, str]]]()
    for rater in ("ann", "bob"):
        page.go("label/twenty")
        tab.get_by_label("Who labels?").fill(rater)
        tab.keyboard.press("Enter")
        tab.locator("#left").wait_for()
        assert not re.search("judge|oracle|sample", tab.locator("main").inner_text())
        given[rater] = []
        for n in range(wanted + checks):
            texts = [tab.locator(f"#{side}").text_content() for side in ("left", "right")]
            key = "3" if n % 7 == 0 else "1" if len(texts[0]) < len(texts[1]) else "2"
            given[rater].append(("|".join(sorted(texts)), key))
            tab.keyboard.press(key)
            tab.wait_for_function(
                "([a, b]) => { const l = document.querySelector('#left'), r = document.querySelector('#right');"
                " return !l || l.textContent !== a || r.textContent !== b }", arg=texts,
            )  # fmt: skip
            if rater == "ann" and n == 3:  # a look back, another label, and one taken back
                tab.keyboard.press("k")
                page.sees(".warn", "You said:")
                assert [tab.locator(f"#{s}").text_content() for s in ("left", "right")] == texts
                tab.keyboard.press("3")
                tab.locator(".warn").wait_for(state="detached")
                tab.keyboard.press("u")
                page.sees("main", "3 labelled")
                assert [tab.locator(f"#{s}").text_content() for s in ("left", "right")] == texts
                tab.keyboard.press(key)
                page.sees("main", "4 labelled")
        page.sees("h2", "Nothing is left for you")
        page.sees("p", "The judge says the same on")
    progress = client.get("/v1/labels/twenty/progress").json()
    assert [(r["rater"], r["labels"], r["checks"]) for r in progress["raters"]] == [
        ("ann", wanted, checks), ("bob", wanted, checks)
    ]  # fmt: skip
    assert progress["done"] == wanted >= 18
    for rater, said in given.items():
        mine = client.get("/v1/labels/twenty/mine", params={"rater": rater, "limit": 200}).json()["labels"]
        keys = {"left": "1", "right": "2", "tie": "3"}
        told = {"|".join(sorted((m["left"], m["right"]))): keys[m["label"]] for m in mine}
        assert told == dict(said)
    page.go("agreement/twenty")
    page.sees("div", f"{2 * wanted} of {2 * wanted} labels by 2 raters")
    for title in ("Coverage", "People", "Agreement", "Ceiling", "Bias", "Disagreements"):
        page.sees("h2", title)
    page.sees("td", "judge of first")
    client.post("/v1/labels/twenty/undo", params={"rater": "ann"}).raise_for_status()
    page.sees("div", f"{2 * wanted - 1} of {2 * wanted} labels by 2 raters")  # by itself
    tab.get_by_label("Ties").select_option("drop")
    page.sees("p", "ties drop")
    assert "tie=drop" in tab.url


def test_a_label_that_cannot_be_sent_is_kept_and_sent_later(browser: Any, client: httpx.Client) -> None:
    client.post("/v1/labels", json={"name": "offline", "run": "first", "n": 3, "attention": 0}).raise_for_status()
    page = Page(browser, client)
    tab = page.go("label/offline?rater=ann")
    tab.locator("#left").wait_for()
    tab.route("**/labels?rater=ann", lambda route: route.abort())
    tab.keyboard.press("2")
    page.sees("#saved", "1 not saved yet")
    tab.reload()  # the tab itself may be lost meanwhile
    tab.locator("#left").wait_for()
    assert client.get("/v1/labels/offline/progress").json()["labels"] == 0
    tab.unroute("**/labels?rater=ann")
    page.sees("#saved", "all saved")
    mine = client.get("/v1/labels/offline/mine", params={"rater": "ann"}).json()["labels"]
    assert [m["label"] for m in mine] == ["right"]
    assert all("ERR_FAILED" in e for e in page.errors)
    page.context.close()


def test_a_rule_is_edited_with_lint_and_diff_and_its_flips_are_seen(page: Page, client: httpx.Client) -> None:
    principles = constitution.load("nano").principles
    tab = page.go("constitutions/nano")
    page.sees("#lint h2", "0 warnings")
    text = tab.get_by_label("Constitution (YAML)")
    text.fill("name: mild\nextends: nano\nprinciples:\n  - {id: insult, wieght: 50}\n")
    page.sees("#lint", "wieght")
    assert tab.get_by_role("button", name="Save as a new version").is_disabled()
    text.fill(f"name: mild\nextends: nano\nprinciples:\n  - {{id: {principles[0].id}, weight: 50.0}}\n")
    page.sees("h3", f"re-weighted: {principles[0].id}")
    tab.get_by_label("On N prompts").fill("8")
    tab.get_by_role("button", name="Preview flips").click()
    page.sees("#verdict", "This edit changes")
    page.sees("h3", "before: ")
    tab.get_by_label("Name").fill("mild")
    tab.get_by_role("button", name="Save as a new version").click()
    page.sees("h1", "mild")
    assert client.get("/v1/constitutions/mild").json()["text"].startswith("name: mild\nextends: nano")


HOSTILE = (
    "<script>window.hit = 1</script>", '<img src=x onerror="window.hit = 2">', "<svg onload=window.hit=3><g></svg>",
    "[a link](javascript:window.hit=4) ![x](http://192.0.2.1/x.png)", "</div></main><iframe srcdoc='<b>'></iframe>",
    "abc \u202e fed \u2066 x \u2069 \u200b \ufeff \u05d0\u05d1", "{{7*7}} ${window.hit=5} `${1}` &lt;b&gt; \x07 end",
    "<style>body{display:none}</style><base href=http://192.0.2.1/>",
)  # fmt: skip


def test_hostile_texts_are_text_and_run_nothing(page: Page, client: httpx.Client) -> None:
    tab, wall = page.tab, "\n\n".join(HOSTILE)
    long = "x<b>" * 250_000  # a line of a megabyte
    pairs = [
        {"id": "h", "prompt": wall, "a": f"one {wall}", "b": f"two {wall}"},
        {"id": "long", "prompt": "long?", "a": long, "b": "<i>short</i>"},
    ]
    body = {"name": "hostile", "pairs": pairs, "overlap": 1.0, "raters": 9, "attention": 0, "instructions": wall}
    client.post("/v1/labels", json=body).raise_for_status()
    page.go("label/hostile?rater=eve")
    for _ in pairs:
        left, right = (tab.locator(f"#{s}") for s in ("left", "right"))
        if "two" in (right.text_content() + left.text_content()):
            assert sorted(x.text_content() for x in (left, right)) == [f"one {wall}", f"two {wall}"]
            assert tab.locator("#left bdi.sign").count() == 6  # the marks that turn or hide text are named
            page.sees("#left", "<script>window.hit = 1</script>")
        else:
            tab.get_by_role("button", name="Show all 1,000,000 characters").click()
            assert long in (left.text_content(), right.text_content())
        tab.keyboard.press("1")
        tab.wait_for_timeout(150)
    page.sees("h2", "Nothing is left for you")
    recipe = RECIPE.replace(SCRIPT, "tenet.engines.scripted:echo").replace("[{kind: samples}, ", "[")
    client.post("/v1/runs", json={"recipe": recipe, "name": "hostile", "prompts": [wall]}).raise_for_status()
    run_ends(client, "hostile")
    page.go("pairs/hostile?stage=prompt")
    page.sees(".list a", "<script>window.hit = 1</script>")
    page.go("pairs/hostile/0")
    page.sees(".said", "<script>window.hit = 1</script>")
    assert wall in tab.locator(".said").all_text_contents()
    page.go("new")
    tab.get_by_label("Recipe (YAML)").fill(f"{HOSTILE[1]}: 1\n")
    page.sees(".findings", "onerror")
    page.go("constitutions/nano")
    tab.get_by_label("Constitution (YAML)").fill("name: '<img src=x onerror=window.hit=7>'\nprinciples: [{id: <b>}]\n")
    page.sees("#lint", "<")
    tab.goto(f"{page.base}/#/runs/%3Cimg%20src=x%20onerror=window.hit=6%3E")
    page.sees("main", "onerror")
    assert tab.evaluate("window.hit") is None
    assert tab.locator("main :is(script, img, svg, iframe, style, base)").count() == 0
    page.errors[:] = [e for e in page.errors if "404" not in e and "422" not in e]


def test_a_key_opens_a_session_and_a_rater_sees_labels_only(browser: Any, tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        keys: Keys = client.app.state.service.keys  # type: ignore[attr-defined]
        run, rater = keys.create("ann", ("run",)), keys.create("bob", ("label",))
        body = [{"id": str(i), "prompt": "Why?", "a": f"Because {i}.", "b": "No."} for i in range(3)]
        client.headers["authorization"] = f"Bearer {run}"
        client.post("/v1/labels", json={"name": "keyed", "pairs": body, "attention": 0}).raise_for_status()
        page = Page(browser, client)
        tab = page.go("label")
        tab.get_by_label("Key").fill("tenet_no_key")
        tab.keyboard.press("Enter")
        page.sees("[role=alert]", "this key opens nothing")
        tab.get_by_label("Key").fill(rater)
        tab.keyboard.press("Enter")
        tab.get_by_role("link", name="keyed").click()
        tab.locator("#left").wait_for()  # nobody is asked for a name: the key has one
        assert tab.get_by_text("All raters").count() == 0
        tab.keyboard.press("1")
        page.sees("main", "1 labelled")
        assert client.get("/v1/labels/keyed/progress").json()["raters"][0]["rater"] == "bob"
        assert page.context.cookies()[0]["httpOnly"] is True
        tab.get_by_role("button", name="Log out").click()
        tab.get_by_label("Key").wait_for()
        assert all("status of 40" in e for e in page.errors)
        page.context.close()


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1440, "light")])
def test_every_view_fits_its_window_and_is_accessible(
    browser: Any, client: httpx.Client, width: int, scheme: str
) -> None:
    """Nothing sticks out, every view has one heading and a title, and axe finds nothing serious."""
    page = Page(browser, client, viewport={"width": width, "height": 800}, color_scheme=scheme)
    axe = AXE.read_text(encoding="utf-8")
    found: list[Any] = []
    tab = page.go("runs")
    go = "a => { location.hash = a; document.getElementById('main').setAttribute('aria-busy', 'true') }"
    for view in VIEWS:
        tab.evaluate(go, view)
        tab.locator("main[aria-busy=false]").wait_for()
        assert tab.evaluate("document.documentElement.scrollWidth") <= width, view
        assert tab.locator("h1").count() == 1
        assert tab.title().endswith("· tenet")
        tab.evaluate(axe)
        bad = tab.evaluate("axe.run().then((r) => r.violations.map((v) => [v.impact, v.id, v.nodes[0].html]))")
        found += [(view, *v) for v in bad if v[0] in ("serious", "critical")]
    assert found == []
    assert page.errors == []
    page.context.close()


def test_the_keyboard_reaches_the_content_first_and_focus_shows(page: Page) -> None:
    tab = page.go("runs")
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "Skip to the content"
    assert tab.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "main"
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "New run"
    wait_for(lambda: tab.title() == "Runs · tenet", 5)
