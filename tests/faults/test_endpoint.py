"""A whole run through an endpoint that misbehaves: nothing lost or made up, and an error that says the way out."""

from __future__ import annotations

import asyncio
import itertools
import socket
import ssl
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tenet.errors import EngineRefused, EngineUnreachable, TooManyFailures
from tests.faults.runs import accounts, files, go, outcomes, stored, write
from tests.faults.server import LASTING, MODEL, PASSING, Lasting, Passing, play, served, walk
from tests.stub_server import Answer, Call, Script, Stub, error


class Calm(NamedTuple):
    """A run where nothing goes wrong."""

    asked: int
    files: dict[str, str]
    rows: list[tuple[Any, ...]]


KEY = "Kq93Zm51Ww08"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENET_FAULT_KEY", KEY)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Calm]:
    """What 8 and 24 prompts give where nothing goes wrong; the same script answers, without a server."""
    made: dict[int, Calm] = {}
    for prompts in (8, 24):
        recipe = write(tmp_path_factory.mktemp("calm"), prompts)
        manifest = go(recipe, "run")
        made[prompts] = Calm(manifest["asked"], files(manifest), outcomes(recipe.parent / "run"))
    return made


@pytest.mark.parametrize("fault", PASSING, ids=[f.name for f in PASSING])
def test_a_fault_that_passes_leaves_no_trace_in_the_rows(tmp_path: Path, fault: Passing, calm: dict[int, Calm]) -> None:
    async def use(stub: Stub, recipe: Path) -> None:
        struck = await walk(recipe, "run")
        accounts(struck, 8)
        assert struck["state"] == "whole"
        assert struck["asked"] == calm[8].asked < len(stub.calls)  # some were made again
        assert (files(struck), outcomes(tmp_path / "run")) == calm[8][1:]

    asyncio.run(served(tmp_path, fault.script(), use, more=fault.settings))


@pytest.mark.parametrize("fault", LASTING, ids=[f.name for f in LASTING])
def test_a_fault_that_stays_drops_what_it_strikes_with_the_reason(
    tmp_path: Path, fault: Lasting, calm: dict[int, Calm]
) -> None:
    async def use(stub: Stub, recipe: Path) -> None:
        struck = await walk(recipe, "run")
        accounts(struck, 8)
        unit, stage, reason = fault.reason
        whole = 8 if unit == "prompt" else struck["pairs"]["made"]
        assert 0 < struck["drops"][unit][stage][reason] < whole
        assert struck["prompts"]["kept"] > 0
        calls, stub.script = len(stub.calls), play
        healed = await walk(recipe, "run")
        if fault.passes:
            assert (files(healed), outcomes(tmp_path / "run")) == calm[8][1:]
        else:  # asking again cannot help, and costs nothing
            assert (len(stub.calls), healed["drops"]) == (calls, struck["drops"])

    asyncio.run(served(tmp_path, fault.script(), use, more=fault.settings))


class Ends(NamedTuple):
    """How a run ends that cannot go on."""

    error: type[Exception]
    says: str
    prompts: int = 8
    good: int = 40
    """Calls that are answered before."""


def goes_on_after(folder: Path, bad: Answer, ends: Ends, calm: Calm, more: str = "") -> None:
    """Good answers, then bad ones: the run ends in words, keeps what it has, and is whole once all is well."""

    async def use(stub: Stub, recipe: Path) -> None:
        with pytest.raises(ends.error, match=ends.says) as ended:
            await walk(recipe, "run", **{"limits.in_flight": "4"})
        assert not (folder / "run/manifest.json").exists()
        assert KEY not in str(ended.value)
        made, stub.script = len(stub.calls), play
        healed = await walk(recipe, "run")
        accounts(healed, ends.prompts)
        assert (files(healed), outcomes(folder / "run")) == calm[1:]
        # what was answered is not paid again, save for what was in flight when the run ended
        assert len(stub.calls) - made <= calm.asked - ends.good + 32

    def script(call: Call) -> Answer:
        return play(call) if call.number < ends.good else bad

    asyncio.run(served(folder, script, use, prompts=ends.prompts, more=more))


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (error(401, "Incorrect API key"), r"127\.0\.0\.1:\d+ refuses the key in \$TENET_FAULT_KEY: correct the key"),
        (error(403, "not for you"), r"127\.0\.0\.1:\d+ refuses the key in \$TENET_FAULT_KEY: correct the key"),
        (error(404, "no such model"), r"127\.0\.0\.1:\d+ knows no such model or path: check engine\.model"),
        (error(429, "pay", "insufficient_quota"), r"127\.0\.0\.1:\d+ wants the account to be paid"),
        (error(429, "tomorrow", retry_after="86400"), r"asks to wait 86400 s .*: start again later"),
    ],
    ids=["401", "403", "404", "quota", "Retry-After of a day"],
)
def test_a_refusal_stops_the_run_and_says_the_way_out(
    tmp_path: Path, bad: Answer, says: str, calm: dict[int, Calm]
) -> None:
    goes_on_after(tmp_path, bad, Ends(EngineRefused, says), calm[8])


@pytest.mark.parametrize(
    "bad",
    [error(500, "down"), error(429, "down"), Answer(reset=True)],
    ids=["500 for good", "429 for good", "server gone"],
)
def test_an_endpoint_that_stays_down_stops_the_run_before_it_drops_all(
    tmp_path: Path, bad: Answer, calm: dict[int, Calm]
) -> None:
    ends = Ends(TooManyFailures, r"prompts failed, more than limits\.max_failures=0\.2 allows", prompts=24, good=150)
    goes_on_after(tmp_path, bad, ends, calm[24], more="retries: 3, patience_s: 0.1")


def test_a_redirect_to_another_host_gets_neither_prompt_nor_key(tmp_path: Path) -> None:
    async def go() -> list[Call]:
        async with Stub(play) as other:
            moved = Answer(b"", status=307, headers={"Location": f"{other.base_url}/chat/completions"})

            async def use(stub: Stub, recipe: Path) -> None:
                with pytest.raises(
                    EngineRefused, match=r"redirects to http://127.*never followed: set engine\.base_url"
                ):
                    await walk(recipe, "run")
                assert stub.calls[0].headers["authorization"] == f"Bearer {KEY}"

            await served(tmp_path, lambda _: moved, use)
            return other.calls

    assert asyncio.run(go()) == []


def unreachable(folder: Path, base_url: str, says: str) -> None:
    recipe = write(folder, 4, MODEL.replace("BASE", base_url).replace("MORE", "retries: 3"))
    with pytest.raises(EngineUnreachable, match=says):
        asyncio.run(walk(recipe, "run"))
    assert stored(folder / "run") == []


def test_a_refused_connection_is_said_with_host_and_reason(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    says = (
        rf"nothing answers at 127\.0\.0\.1:{port} \(connection refused\): start the server, or correct engine\.base_url"
    )
    unreachable(tmp_path, f"http://127.0.0.1:{port}/v1", says)


def test_a_name_that_no_server_has_is_said_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_: object, **__: object) -> Any:  # no question leaves this machine
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    unreachable(tmp_path, "http://gone.test/v1", r"gone\.test:80 \(Name or service not known\)")


def own_certificate(folder: Path) -> ssl.SSLContext:
    """A server's TLS that nobody vouches for."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "me")])
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(datetime.now(UTC)).not_valid_after(datetime.now(UTC) + timedelta(days=1))
    pem = made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    folder.mkdir(exist_ok=True)
    (folder / "own.pem").write_bytes(pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "own.pem")
    return context


@pytest.mark.parametrize("with_tls", [True, False], ids=["unknown certificate", "no TLS"])
def test_a_server_that_cannot_prove_who_it_is_gets_no_prompt(tmp_path: Path, with_tls: bool) -> None:
    async def go() -> None:
        async with Stub(play, own_certificate(tmp_path) if with_tls else None) as stub:
            url = stub.base_url.replace("http://", "https://")
            recipe = write(tmp_path, 4, MODEL.replace("BASE", url).replace("MORE", "retries: 3"))
            says = "certificate verify failed.*base_url" if with_tls else "(?i)ssl.*base_url"
            with pytest.raises(EngineUnreachable, match=says):
                await walk(recipe, "run")
            assert not stub.calls

    asyncio.run(go())


def named(model: str, print_: str) -> Script:
    def script(call: Call) -> Answer:
        answer = play(call)
        answer.body |= {"model": model, "system_fingerprint": print_}
        return answer

    return script


@pytest.mark.parametrize(("model", "print_"), [("m-2", "fp_1"), ("m-1", "fp_2")], ids=["model", "system_fingerprint"])
def test_a_model_swapped_in_mid_run_is_said_and_not_mixed_in(
    tmp_path: Path, model: str, print_: str, calm: dict[int, Calm]
) -> None:
    old, new = named("m-1", "fp_1"), named(model, print_)

    async def use(stub: Stub, recipe: Path) -> None:
        stub.script = lambda call: old(call) if call.number < 40 else new(call)
        says = rf"now answers as '{model}, {print_}', and the stored replies are those of 'm-1, fp_1'.*not mixed"
        for _ in range(2):  # the next start is told the same
            with pytest.raises(EngineRefused, match=says):
                await walk(recipe, "struck/run")
        stub.script = old
        healed = await walk(recipe, "struck/run")
        assert healed["engines"]["m"]["served"] == "m-1, fp_1"
        assert (files(healed), outcomes(tmp_path / "struck/run")) == calm[8][1:]
        stub.script = new
        anew = await walk(recipe, "struck/other", **{"models.m.version": "'2'"})
        assert (anew["engines"]["m"]["served"], anew["reused"]) == (f"{model}, {print_}", 0)

    asyncio.run(served(tmp_path, old, use))


def test_backends_that_alternate_are_let_through_where_the_recipe_says_so(tmp_path: Path) -> None:
    both = [named("m-1", "fp_1"), named("m-1", "fp_2")]

    async def use(stub: Stub, recipe: Path) -> None:
        stub.script = lambda call: both[call.number % 2](call)
        with pytest.raises(EngineRefused, match="pinned: model"):
            await walk(recipe, "run")
        told = await walk(recipe, "run", **{"models.m.pinned": "model"})
        assert told["state"] == "whole"
        assert told["engines"]["m"]["served"].startswith("m-1")

    asyncio.run(served(tmp_path, play, use))


def test_a_clock_that_jumps_by_hours_changes_neither_waits_nor_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calm: dict[int, Calm]
) -> None:
    fault = next(f for f in PASSING if f.name == "429 with Retry-After")
    real, jumps = time.time, itertools.cycle((-3600.0, 86_400.0, 0.0))

    async def use(stub: Stub, recipe: Path) -> None:
        begun = time.monotonic()
        struck = await walk(recipe, "run")
        assert 0 <= struck["seconds"] <= time.monotonic() - begun < 40
        assert (files(struck), outcomes(tmp_path / "run")) == calm[8][1:]

    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    asyncio.run(served(tmp_path, fault.script(), use))
