"""The report's sections, from the figures that the JSON holds."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from judges.agreement import _plots
from judges.agreement.measure import SMALL
from judges.agreement.votes import VERDICTS
from tenet.pages import Block, Heading, Plot, Table, Text

SHOWN = 25
"""People listed one by one, at most."""
MOST_SLICES = 24
"""Values drawn for each slice, those with the most items."""
Judges = list[tuple[str, dict[str, Any]]]


def number(value: Any, digits: int = 3) -> str:
    """A figure for a table's cell: rounded, a whole number as it is, a dash for null."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.{digits}f}"


def spread(figure: dict[str, Any]) -> str:
    """A value with its interval: "0.711 (0.682 to 0.740)"."""
    if figure["value"] is None or figure["low"] is None:
        return number(figure["value"])
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"


def coverage(f: dict[str, Any], judges: Judges) -> list[Block]:
    blocks: list[Block] = []
    states = (*VERDICTS, *(["graded"] if f["input"]["graded"] else []))
    head = ["judge", "scored items", "judge and people", "judge only", "people only", "no gold label"]
    rows: list[list[str]] = []
    for name, j in judges:
        c = j["coverage"]
        rows.append([name, *(number(x) for x in (j["n"], c["both"], c["judge_only"], c["human_only"], c["no_gold"]))])
    blocks.append(Table(head, rows))
    rows = [[name, *(number(j["states"].get(s, 0)) for s in states)] for name, j in judges]
    blocks.append(Table(["votes of", *states], rows))
    if f["input"]["ignored_columns"]:
        blocks.append(Text(f"Columns that nothing reads: {', '.join(f['input']['ignored_columns'])}.", note=True))
    if not judges:
        blocks.append(Text("No rater is of kind judge, so there is nothing to hold against the people."))
    return blocks


def people(humans: dict[str, Any]) -> list[Block]:
    raters = humans["raters"]
    blocks: list[Block] = []
    held = ", ".join(f"{label} {n:,}" for label, n in humans["majority"].items())
    who = "1 person" if len(raters) == 1 else f"{len(raters)} people"
    said = f"{who} labelled {humans['items']:,} items. Majority labels: {held}"
    blocks.append(Text(f"{said}; without a majority: {humans['no_majority']:,}."))
    fleiss, alpha, ceiling = humans["fleiss_kappa"], humans["krippendorff_alpha"], humans["leave_one_out_ceiling"]
    rows = [
        ["mean agreement of two people", number(humans["pairwise_agreement"]["mean"], 4)],
        ["mean Cohen's kappa of two people", number(humans["cohen"]["mean"], 4)],
        [_fleiss_name(fleiss), number(fleiss["value"], 4)],
        *([f"Krippendorff's alpha, {k}", number(alpha[k], 4)] for k in ("nominal", "ordinal", "interval")),
        ["Gwet's AC1", number(humans["gwet_ac1"], 4)],
    ]
    blocks.append(Table(["among people", "value"], rows))
    if humans["why"]:
        reasons = "; ".join(dict.fromkeys(humans["why"].values()))
        blocks.append(Text(f"Missing figures: {reasons}.", note=True))
    each = ceiling["per_human"] or {}
    if each and len(each) <= SHOWN:
        head = ["one against the rest", "labels", "a random other", "majority of the others", "n"]
        rows = [
            [name, number(raters[name]), number(x["random_other"]["value"], 4),
             number(x["majority_of_others"]["value"], 4), number(x["majority_of_others"]["n"])]
            for name, x in each.items()
        ]  # fmt: skip
        blocks.append(Table(head, rows))
    return blocks


def _fleiss_name(fleiss: dict[str, Any]) -> str:
    return f"Fleiss' kappa, {number(fleiss['n'])} items with {number(fleiss['ratings'])} labels each"


def agreement_of(f: dict[str, Any], judges: Judges) -> list[Block]:
    blocks: list[Block] = []
    scored = [(name, j) for name, j in judges if j["accuracy"]["value"] is not None]
    if scored:
        svg = _plots.agreement(scored[: _plots.MOST], _ceilings(f["humans"]), _baselines(scored[0][1]))
        blocks.append(Plot("agreement", svg, _caption(scored, "Accuracy beside what people and trivial judges reach")))
    head = ["judge", "n", "accuracy", "Cohen's kappa", "Scott's pi", "Gwet's AC1", "both say A or B", "n"]
    rows = [
        [name, number(j["n"]), spread(j["accuracy"]), spread(j["cohen_kappa"]), number(j["scott_pi"]),
         number(j["gwet_ac1"]), number(j["s2"]["value"]), number(j["s2"]["n"])]
        for name, j in judges
    ]  # fmt: skip
    blocks.append(Table(head, rows))
    head = ["judge", "balanced", "macro P", "macro R", "macro F1", "weighted P", "weighted R", "weighted F1"]
    rows = [
        [name, number(j["balanced_accuracy"]), *(number(j[k][x]) for k in ("macro", "weighted")
                                                 for x in ("precision", "recall", "f1"))]
        for name, j in judges
    ]  # fmt: skip
    blocks.append(Table(head, rows))
    if f["input"]["graded"]:
        head = ["judge", "Pearson", "Spearman", "Kendall", "quadratic kappa", "n"]
        keys = ("pearson", "spearman", "kendall")
        rows = [
            [
                n,
                *(number(j["correlation"][k]) for k in keys),
                number(j["weighted_kappa"]),
                number(j["correlation"]["n"]),
            ]
            for n, j in judges
        ]
        blocks.append(Table(head, rows))
    if scored and len(f["input"]["classes"]) <= 5:
        caption = _caption(scored, "Items by people's label and verdict, shaded by share of the row", 3)
        blocks.append(Plot("confusion", _plots.confusion(scored[:3]), caption))
    return [*blocks, *_rules_table(judges), *_between(f["between"])]


def _rules_table(judges: Judges) -> list[Block]:
    """How far each rule by itself moves the accuracy."""
    if not judges or judges[0][1]["n"] == 0:
        return []
    cases = [(rule, value) for rule, values in judges[0][1]["by_rule"].items() for value in values if value != "why"]
    rows = [[f"{rule}: {value}", *(number(j["by_rule"][rule][value], 4) for _, j in judges)] for rule, value in cases]
    return [Heading("Accuracy with one rule changed"), Table(["rule", *(name for name, _ in judges)], rows)]


def _between(between: dict[str, Any]) -> list[Block]:
    if not between["mcnemar"]:
        return []
    rows: list[list[str]] = []
    for test, gap in zip(between["mcnemar"], between["difference"], strict=True):
        only = f"{test['only_first_right']:,} / {test['only_second_right']:,}"
        p = "–" if test["p"] is None else f"{test['p']:.2g}"
        rows.append([" against ".join(test["judges"]), number(test["n"]), spread(gap), only, p, test["test"] or "–"])
    head = ["judges", "n", "difference in accuracy", "only one right", "McNemar p", "test"]
    blocks: list[Block] = [Heading("Judges beside each other"), Table(head, rows)]
    ranks = between["rank_stability"]
    if ranks["order"]:
        order = " > ".join(ranks["order"])
        blocks.append(Text(f"By accuracy on {ranks['n']:,} shared items: {order}. {ranks['kept']:.1%} of resamples "
                           "keep this order."))  # fmt: skip
    return blocks


def _ceilings(humans: dict[str, Any]) -> dict[str, float]:
    c = humans["leave_one_out_ceiling"]
    named = {"a person and a random other": "random_other", "a person and the others' majority": "majority_of_others"}
    return {name: c[key] for name, key in named.items() if c[key] is not None}


def _baselines(judge: dict[str, Any]) -> dict[str, float]:
    named = {"always the longer": "longer", "always the first": "first", "always one label": "majority"}
    found = {name: judge["bias"][f"{key}_baseline"] for name, key in named.items()}
    return {name: f["value"] for name, f in found.items() if f and f["value"] is not None}


def ceiling(humans: dict[str, Any], judges: Judges) -> list[Block]:
    blocks: list[Block] = []
    c = humans["leave_one_out_ceiling"]
    if c["random_other"] is not None:
        rows = [["people", number(c["random_other"], 4), number(c["majority_of_others"], 4)]]
        rows += [[n, *(number(j["by_rule"]["gold"][k], 4) for k in ("each", "leave-one-out"))] for n, j in judges]
        blocks.append(
            Table(["with one person left out", "against one person", "against the majority of the others"], rows)
        )
        said = (
            "People stand beside the judges here on equal terms: neither was part of the labels they are held against."
        )
        blocks.append(Text(said, note=True))
    else:
        blocks.append(Text(f"No ceiling: {humans['leave_one_out_ceiling'].get('why', 'it takes two people')}."))
    blocks.append(Heading("Alternative-annotator test"))
    head = ["judge", "winning rate omega", "mean advantage rho", "passed"]
    rows = [[name, *(number(j["alt_test"][k]) for k in ("omega", "rho", "passed"))] for name, j in judges]
    blocks.append(Table(head, rows))
    for name, j in judges:
        if j["alt_test"]["omega"] is None:
            blocks.append(Text(f"{name}: {j['alt_test']['why']}.", note=True))
    people = [(n, who, x) for n, j in judges for who, x in (j["alt_test"]["per_human"] or {}).items()]
    if 0 < len(people) <= 4 * SHOWN:
        head = ["judge", "person left out", "judge at least as good", "person at least as good", "p", "beaten", "n"]
        rows = [
            [n, who, number(x["rho"]), number(x["rho_human"]), f"{x['p']:.2g}", number(x["beaten"]), number(x["n"])]
            for n, who, x in people
        ]
        blocks.append(Table(head, rows, texts=2))
    return blocks


def bias(judges: Judges) -> list[Block]:
    blocks: list[Block] = []
    drawn = [(n, j) for n, j in judges if j["first_slot_share"] is not None or j["bias"]["by_length_quartile"]]
    if drawn:
        caption = "Shares for the first slot and for the longer reply; accuracy by difference in length"
        blocks.append(Plot("bias", _plots.bias(drawn[: _plots.MOST]), _caption(drawn, caption)))
    head = ["judge", "same in both orders", "n", "first slot", "same slot twice", "longer reply", "people: longer"]
    rows: list[list[str]] = []
    for name, j in judges:
        longer, slot = j["bias"]["longer_share"] or {}, j["bias"]["same_slot_share"]
        figures = (j["consistency"]["value"], j["consistency"]["n"], j["first_slot_share"], slot["value"])
        rows.append([name, *map(number, (*figures, longer.get("value"), longer.get("humans")))])
    blocks.append(Table(head, rows))
    kinds = ("longer_baseline", "first_baseline", "majority_baseline")
    rows = [[n, number(j["accuracy"]["value"]), *(number(j["bias"][k]["value"]) for k in kinds)] for n, j in judges]
    blocks.append(Table(["judge", "accuracy", "always the longer", "always the first", "always one label"], rows))
    own = [(n, j["bias"]["self_family"]) for n, j in judges if j["bias"]["self_family"]["judge"] is not None]
    if own:
        rows = [[n, s["family"], *(number(s[k]) for k in ("judge", "humans", "n"))] for n, s in own]
        blocks.append(Table(["judge", "family", "chose its own family", "people did", "n"], rows, texts=2))
    return blocks


def slices(judges: Judges) -> list[Block]:
    blocks: list[Block] = []
    names = dict.fromkeys(name for _, j in judges for name in j["slices"])
    for number_, name in enumerate(names):
        blocks.append(Heading(name))
        found = [j["slices"].get(name, {}) for _, j in judges]
        if "why" in found[0] and isinstance(found[0]["why"], str):
            blocks.append(Text(f"Not shown: {found[0]['why']}.", note=True))
            continue
        values = sorted({v for of in found for v in of}, key=lambda v: (-max(of[v]["n"] for of in found if v in of), v))
        shown = [v for v in values if any(of[v]["n"] for of in found if v in of)][:MOST_SLICES]
        if shown:
            drawn = [(v, [of.get(v) for of in found[: _plots.MOST]]) for v in shown]
            svg = _plots.slices(drawn, [n for n, _ in judges[: _plots.MOST]])
            left = f"; {len(values) - len(shown)} more in the table" if len(values) > len(shown) else ""
            blocks.append(Plot(f"slices-{number_}", svg, f"Accuracy by {name}, the largest slices first{left}"))
        rows = [
            [v, n, number(of[v]["n"]) + (" *" if of[v]["small"] else ""), _wilson(of[v]["accuracy"]),
             number(of[v]["cohen_kappa"]["value"])]
            for v in values for (n, _), of in zip(judges, found, strict=True) if v in of
        ]  # fmt: skip
        blocks.append(Table([name, "judge", "n", "accuracy (Wilson interval)", "Cohen's kappa"], rows, texts=2))
    if not names:
        return [Text("The votes name no slices.")]
    return [*blocks, Text(f"* fewer than {SMALL} scored items.", note=True)]


def _wilson(accuracy: dict[str, Any]) -> str:
    # Few items that are all right resample to the same: the bootstrap would call them certain.
    return spread({"value": accuracy["value"], **accuracy["wilson"]})


def calibration(judges: Judges) -> list[Block]:
    with_p = [(n, j) for n, j in judges if j["calibration"]["brier"] is not None]
    if not with_p:
        why = dict.fromkeys(j["calibration"]["why"] for _, j in judges)
        return [Text(f"Nothing to calibrate: {'; '.join(why) or 'there are no judges'}.")]
    caption = _caption(with_p, "Share of gold A where the judge says p(A); the line is perfect calibration", 3)
    blocks: list[Block] = [Plot("reliability", _plots.reliability(with_p[:3]), caption)]
    rows = [
        [n, key, *(number(j["calibration"][key][k]) for k in ("brier", "ece", "ece_confidence", "n"))]
        for n, j in with_p
        for key in ("before", "after")
    ]
    head = ["judge", "orders averaged", "Brier", "ECE of p(A)", "ECE of confidence", "n"]
    return [*blocks, Table(head, rows, texts=2)]


def robustness(judges: Judges, attacks: Sequence[dict[str, Any]]) -> list[Block]:
    """What the votes tell, and what `tenet attack` measured, if it was run."""
    head = ["judge", "unreadable votes", "share", "same in both orders", "same slot twice"]
    rows: list[list[str]] = []
    for name, j in judges:
        bad, total = j["states"]["invalid"] + j["states"]["refused"], sum(j["states"].values())
        slot = j["bias"]["same_slot_share"]["value"]
        share = bad / total if total else None
        rows.append([name, number(bad), number(share), number(j["consistency"]["value"]), number(slot)])
    blocks: list[Block] = [Table(head, rows)]
    for of in attacks:
        blocks.append(
            Heading(f"Attacks on {', '.join(of['judge']['engines'])} ({of['judge']['settings'].get('kind')})")
        )
        kinds = ("false_accept", "false_accept_control", "flip", "flip_control")
        rows = [[x["name"], *(spread(x[k]) for k in kinds), number(x["escapes"])] for x in of["attacks"]]
        blocks.append(Table(["attack", "false accepts", "bland control", "flips", "bland control", "escapes"], rows))
    if not attacks:
        blocks.append(
            Text("Attacks were not measured: tenet attack asks the judge itself, votes cannot tell.", note=True)
        )
    return blocks


def _caption(judges: Judges, said: str, most: int = _plots.MOST) -> str:
    return said + (f" (the first {most} of {len(judges)} judges)." if len(judges) > most else ".")
