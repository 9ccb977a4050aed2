"""The command line: `tenet generate`, `tenet judge`, `tenet train`, …; groups of commands have files of their own."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from service.constitution_cli import constitution
from service.edits_cli import runs
from service.inspect_cli import inspect
from service.nano_cli import nano
from service.serve_cli import keys, serve
from tenet.errors import AccountingError, InputError, TenetError

app = typer.Typer(
    help="Preference data from a written constitution.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(nano, name="nano")
app.add_typer(inspect, name="inspect")
app.add_typer(constitution, name="constitution")
app.add_typer(runs, name="runs")
app.add_typer(keys, name="keys")
app.command()(serve)

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[key=value …]", help="Settings that replace the file's.")
]


def main() -> None:
    """Runs the command; an error that is the user's to mend is one message, not a traceback."""
    try:
        app()
    except InputError as error:
        _fail(f"tenet: {error}", 2)
    except AccountingError as error:
        _fail(f"tenet: the run accounted wrongly, which is a bug of ours: {error}", 4)
    except TenetError as error:
        _fail(f"tenet: {type(error).__name__}: {error}", 3)


def _fail(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)


@app.command()
def generate(
    recipe: Annotated[Path, typer.Argument(help="A recipe file (YAML).")],
    overrides: Overrides = None,
    out: Annotated[str | None, typer.Option(help="The run's folder; default runs/<recipe>.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N rows.")] = None,
    shard: Annotated[str, typer.Option(help="i/N: every N-th row, from the i-th (0-based).")] = "0/1",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, call nothing.")] = False,
    address: Annotated[str | None, typer.Option(help="A Ray cluster for replicas: auto, host:6379, ray://….")] = None,
) -> None:
    """Prompts in, judged preference pairs out. The same command goes on where a run was stopped."""
    from service import plan, screen
    from service import recipe as recipes
    from service.pipeline import Window

    opened = recipes.open_recipe(recipe, overrides or [], out).on(address)
    window = Window(limit, _shard(shard))
    if dry_run:
        screen.show_plan(plan.describe(opened, window))
        return
    manifest = run_watched(opened, window)
    screen.show_summary(opened, manifest)
    if manifest["state"] != "whole":
        again = " ".join(["tenet generate", str(recipe), *(overrides or [])])
        print(f"\nNot whole ({manifest['state']}). To go on: {again}" + (f" --out {out}" if out else ""))
        sys.exit(130 if manifest["state"] == "stopped" else 3)


def run_watched(plan: Any, window: Any, engines: Any = None) -> dict[str, Any]:
    """Runs a plan with progress bars; the first Ctrl-C or SIGTERM stops cleanly, the second at once."""
    import asyncio

    from service import run, screen

    async def watched() -> dict[str, Any]:
        with screen.Progress() as bars:
            hooks = run.Hooks(stage=bars.stage, rows=bars.rows, tally=bars.tally, pipeline=bars.pipeline)
            loop = asyncio.get_running_loop()
            task = asyncio.ensure_future(run.execute(plan, window, hooks, engines))

            def interrupt() -> None:
                if not bars.stop():
                    task.cancel()

            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, interrupt)
            try:
                return await task
            finally:
                for number in (signal.SIGINT, signal.SIGTERM):
                    loop.remove_signal_handler(number)

    try:
        return asyncio.run(watched())
    except asyncio.CancelledError:
        _fail("\nStopped at once. Stored replies stay; the same command goes on.", 130)
        raise


def _shard(text: str) -> tuple[int, int]:
    i, slash, n = text.partition("/")
    if not (slash and i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise InputError(f"--shard {text!r} is not i/N", fix="i from 0 to N-1, such as 0/4")
    return int(i), int(n)


@app.command()
def demo(
    out: Annotated[str, typer.Option(help="The run's folder.")] = "runs/demo",
    prompts: Annotated[int, typer.Option(min=1, help="How many prompts.")] = 240,
) -> None:
    """The whole job on the bundled toy model: real vLLM engines in Ray actors, no network."""
    from service import demo as shown

    shown.main(Path(out), prompts)


@app.command()
def judge(
    pairs: Annotated[Path, typer.Argument(help="Pairs: JSONL, JSON, CSV or Parquet.")],
    config: Annotated[Path, typer.Option("--judge", help="A judge's config, or a recipe (YAML).")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Verdicts, JSONL; default runs/judged/<pairs>.jsonl.")] = None,
    votes: Annotated[Path | None, typer.Option(help="Also write a votes file for `tenet agree`.")] = None,
    workspace: Annotated[Path, typer.Option(help="Holds calls.sqlite, the stored replies.")] = Path("runs"),
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N pairs.")] = None,
) -> None:
    """Pairs in, verdicts out. The same command goes on where it was stopped: stored replies are free."""
    from service import judge as command

    command.main(pairs, config, overrides or [], command.Places(out, votes, workspace), limit)


@app.command()
def selftest(
    config: Annotated[Path, typer.Option("--judge", help="A judge's config, or a recipe (YAML).")],
    overrides: Overrides = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Also write the certificate here.")] = None,
) -> None:
    """Planted preferences through the whole pipeline: no label may be lost, flipped or invented. No model is called."""
    from service import selftest as certified

    if not certified.main(config, overrides or [], json_out):
        sys.exit(1)


@app.command()
def attack(
    config: Annotated[Path, typer.Option("--judge", help="A judge's config, or a recipe (YAML).")],
    overrides: Overrides = None,
    pairs: Annotated[Path | None, typer.Option(help="Pairs with labels; default: nano's small world.")] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="How many pairs.")] = 100,
    json_out: Annotated[Path | None, typer.Option("--json", help="Also write the report here.")] = None,
    workspace: Annotated[Path, typer.Option(help="Holds calls.sqlite, the stored replies.")] = Path("runs"),
) -> None:
    """How often a judge is won over by replies that are not better; exit status 1 if one escapes its fence."""
    from service import attack as attacked

    if not attacked.main(config, overrides or [], pairs, n, json_out, workspace):
        sys.exit(1)


@app.command()
def agree(
    votes: Annotated[Path | None, typer.Argument(help="Votes, or annotated pairs: JSONL, JSON, CSV, Parquet.")] = None,
    judges: Annotated[
        list[str] | None, typer.Option("--judge", help="A rater; without VOTES, a config that judges --pairs.")
    ] = None,
    pairs: Annotated[Path | None, typer.Option(help="Labelled pairs to judge now, or the texts of VOTES.")] = None,
    tie: Annotated[str, typer.Option(help="three-class, half or drop.")] = "three-class",
    swap: Annotated[str, typer.Option(help="both, mean, first or signed-sum.")] = "both",
    invalid: Annotated[str, typer.Option(help="tie, wrong or drop.")] = "wrong",
    gold: Annotated[str, typer.Option(help="majority, each or leave-one-out.")] = "majority",
    epsilon: Annotated[float, typer.Option(help="The alt-test's allowance: 0.2 experts, 0.1 crowds.")] = 0.15,
    by: Annotated[list[str] | None, typer.Option("--by", help="Only this slice; may be repeated.")] = None,
    seed: Annotated[int, typer.Option(help="Decides the bootstrap's draws.")] = 0,
    resamples: Annotated[int, typer.Option(help="Resamples of the items.")] = 1000,
    duplicates: Annotated[str, typer.Option(help="refuse, last or majority.")] = "refuse",
    json_out: Annotated[Path | None, typer.Option("--json", help="Write all figures here.")] = None,
    report: Annotated[Path | None, typer.Option(help="Folder for report.html and report.md.")] = None,
    attacks: Annotated[list[Path] | None, typer.Option("--attack", help="JSON of tenet attack to report.")] = None,
    gate: Annotated[str, typer.Option(help="'kappa.low>=0.6,invalid<=0.02': exit status 1 if one fails.")] = "",
    workspace: Annotated[Path, typer.Option(help="Holds calls.sqlite, the stored replies.")] = Path("runs"),
) -> None:
    """How far judges agree with people: every figure with its rule and its n."""
    from judges.agreement.rules import Rules
    from service import agree as command
    from tenet.settings import assemble

    said = {
        "tie": tie, "swap": swap, "invalid": invalid, "gold": gold, "epsilon": epsilon, "seed": seed,
        "resamples": resamples, "duplicates": duplicates,
    }  # fmt: skip
    rules = assemble(Rules, said, where="the command line")
    job = command.Job(votes, pairs, judges or [], rules, by or [], gate, json_out, report, attacks or [], workspace)
    if not command.main(job):
        sys.exit(1)


@app.command()
def train(
    kind: Annotated[str, typer.Argument(help="pretrain, sft, reward, dpo or ppo.")],
    config: Annotated[Path, typer.Argument(help="How to train (YAML).")],
    overrides: Overrides = None,
) -> None:
    """Trains a model on what a run made. The same command goes on where a training was stopped."""
    from service import train as trained

    trained.main(kind, config, overrides or [])


@app.command()
def upcycle(
    dense: Annotated[str, typer.Argument(help="A dense Qwen3 or Llama: a folder, a hub name, or nano:<stage>.")],
    experts: Annotated[int, typer.Option(help="E, routed experts a layer.")],
    top_k: Annotated[int, typer.Option("--top-k", help="K, experts for each token.")],
    out: Annotated[Path, typer.Option(help="The new model's folder.")],
    granularity: Annotated[int, typer.Option(help="G: experts of 1/G the size; divides E, K and the MLP.")] = 1,
    shared_expert: Annotated[bool, typer.Option("--shared-expert", help="Also one that all tokens go to.")] = False,
    noise: Annotated[float, typer.Option(help="Noise on each expert, as a share of its weights' spread.")] = 0.0,
    reinit: Annotated[float, typer.Option(help="Share of each expert's inner units drawn anew.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Decides routers, noise and what is drawn anew.")] = 0,
) -> None:
    """A mixture of experts that computes what the dense model does, until it is trained."""
    from service import upcycle as command

    said = {
        "experts": experts, "top_k": top_k, "granularity": granularity, "shared_expert": shared_expert,
        "noise": noise, "reinit": reinit, "seed": seed,
    }  # fmt: skip
    command.main(dense, out, said)


@app.command("judge-bench")
def judge_bench(
    pairs: Annotated[Path, typer.Argument(help="Pairs with people's labels: JSONL, JSON, CSV or Parquet.")],
    grid: Annotated[Path, typer.Option(help="A judge's config with grid: and variants: (YAML).")],
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N pairs.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Ask everything anew, to measure seconds.")] = False,
    json_out: Annotated[Path | None, typer.Option("--json", help="Also write the report here.")] = None,
    workspace: Annotated[Path, typer.Option(help="Holds calls.sqlite, the stored replies.")] = Path("runs"),
) -> None:
    """The same pairs under many settings of a judge: agreement, cost, and which differences are real."""
    from service import judge_bench as bench

    bench.main(pairs, grid, limit, fresh, json_out, workspace)


@app.command()
def merge(
    adapter: Annotated[Path, typer.Argument(help="A saved adapter's folder.")],
    base: Annotated[str, typer.Option(help="The model it was trained on: a folder or name.")],
    out: Annotated[Path, typer.Option(help="Folder for the plain checkpoint.")],
) -> None:
    """Adds a mixture's adapter to its base's weights: a plain checkpoint with the same logits."""
    from service import merge as merged

    merged.main(adapter, base, out)


@app.command()
def schema(
    folder: Annotated[Path, typer.Argument(help="Where the schemas go.")] = Path("schemas"),
) -> None:
    """JSON Schemas of all YAML files that tenet reads: editors complete and check by them."""
    from service import schema as schemas

    for path in schemas.write(folder):
        print(path)
    print(f"first line of a file: {schemas.line(f'{folder}/recipe.json')} (the path is from that file's own folder)")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A folder of tenet generate or tenet train.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the page; default RUN/report.")] = None,
    stages: Annotated[list[Path] | None, typer.Option("--stage", help="A trained folder; default: all of RUN.")] = None,
    probes: Annotated[list[Path] | None, typer.Option("--probe", help="JSON of tenet inspect.")] = None,
    pairs: Annotated[Path | None, typer.Option(help="Pairs of tenet inspect pairs.")] = None,
    verdicts: Annotated[Path | None, typer.Option(help="Verdicts of tenet judge on --pairs.")] = None,
) -> None:
    """One page with all stages of a run: data, judge, training, probes, examples, win rates."""
    from service import report as command

    command.main(run, out, stages or [], probes or [], command.Duels(pairs, verdicts))
