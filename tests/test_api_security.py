"""What the service refuses: strangers, other sites, files outside, addresses inside, secrets, floods, slow clients."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.api import app
from service.api.keys import Keys
from service.api.settings import Config
from service.api.store import Store
from tenet.errors import SettingsError
from tests.api_server import RECIPE, ROOT, SCRIPT, serving, settings

LISTED = "http://allowed.example/v1"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secure")
    (folder / "secret.jsonl").write_text('{"prompt": "the secret"}\n')
    (folder / "data").mkdir()
    (folder / "data/link.jsonl").symlink_to(folder / "secret.jsonl")
    (folder / "data/mine.jsonl").write_text('{"prompt": "How?"}\n')
    return folder


@pytest.fixture(scope="module")
def client(place: Path) -> Iterator[httpx.Client]:
    """A service without keys, on loopback."""
    with serving(place, allow={"scripts": [SCRIPT], "base_urls": [LISTED]}) as made:
        yield made


def recipe(**changed: str) -> str:
    text = RECIPE
    for old, new in changed.items():
        assert old in text
        text = text.replace(old, new)
    return text


def refused(client: httpx.Client, text: Any, status: int = 422) -> str:
    """What is said against a recipe; nothing of it may have been kept."""
    answer = client.post("/v1/runs", json={"recipe": text, "name": "refused"})
    assert answer.status_code == status, answer.text
    assert client.get("/v1/runs/refused").status_code == 404
    assert "the secret" not in answer.text
    return answer.json()["detail"]


@pytest.mark.parametrize(
    "path", ["../secret.jsonl", "link.jsonl", "/etc/passwd", "mine.jsonl/../../secret.jsonl", "a\\0b", "x" * 5000]
)
def test_prompts_outside_the_data_folders_are_not_read(client: httpx.Client, place: Path, path: str) -> None:
    for given in (path, str(place / "secret.jsonl")):
        told = refused(client, {"prompts": {"path": given}, "constitution": "nano", "models": {"m": {}}})
        assert "no file" in told or "there is no file" in told
    check = {"recipe": recipe(**{"prompts.jsonl": "mine.jsonl"})}
    assert client.post("/v1/recipes/check", json=check).json()["valid"]


@pytest.mark.parametrize("name", ["../secret.jsonl", "/etc/passwd", "./../../../etc/hostname.yaml", "..", "link.yaml"])
def test_constitutions_outside_are_not_read(client: httpx.Client, name: str) -> None:
    assert "constitution" in refused(client, recipe(**{"constitution: nano": f"constitution: {name}"}))
    text = f"name: x\nextends: {name}\nprinciples: [{{id: a, choose: Which?}}]\n"
    told = client.post("/v1/constitutions/lint", json={"text": text}).json()
    assert (told["errors"], told["findings"][0]["rule"]) == (1, "extends")
    assert client.post("/v1/constitutions", json={"name": "mine", "text": text}).status_code == 422


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest", "http://127.0.0.1:8000/v1", "http://10.0.0.1/v1", "http://[::1]/v1",
        "http://localhost/v1", "https://example.com/v1", "http://allowed.example@10.0.0.1/v1",
        "http://allowed.example/v1/../../x",
    ],
)  # fmt: skip
def test_addresses_are_refused_unless_they_are_listed(client: httpx.Client, url: str) -> None:
    model = 'm: {kind: openai, model: x, base_url: "' + url + '"}'
    text = recipe(**{'m: {kind: scripted, script: "tests.oracle_script:play"}': model})
    assert "base_url" in refused(client, text)
    assert "base_url" in refused(client, text.replace(f', base_url: "{url}"', ""))  # the default is loopback


def test_what_runs_code_or_leaks_keys_is_refused(client: httpx.Client) -> None:
    script = {"tests.oracle_script:play": "os:system"}
    assert "script" in refused(client, recipe(**script))
    model = '{kind: scripted, script: "tests.oracle_script:play"}'
    leak = f'{{kind: openai, model: x, base_url: "{LISTED}", key_env: AWS_SECRET_ACCESS_KEY}}'
    assert "key may be sent" in refused(client, recipe(**{model: leak}))
    listed = {"recipe": recipe(**{model: f'{{kind: openai, model: x, base_url: "{LISTED}"}}'})}
    assert client.post("/v1/recipes/check", json=listed).json()["valid"]
    assert "no file" in refused(client, recipe(**{model: "{kind: vllm, model: some/where}"}))
    assert "no file" in refused(client, recipe(**{model: "{kind: vllm, model: 'nano:base', lora: /etc}"}))
    assert "cluster" in refused(client, recipe(**{"kind: scripted, script": "kind: vllm, address: auto, script"}))
    secret = "sk-" + "a" * 30
    told = refused(client, RECIPE + f'respond: {{system: "{secret}"}}\n')
    assert "API key" in told
    assert secret not in told
    key = recipe(**{"kind: scripted": "api_key: abc, kind: scripted"})
    assert "environment only" in refused(client, key)
    assert "folder" in refused(client, RECIPE + "out: /tmp/elsewhere\n")
    over = client.post("/v1/runs", json={"recipe": RECIPE, "overrides": ["prompts.path=/etc/passwd"]})
    assert over.status_code == 422


def test_yaml_bombs_and_deep_or_large_bodies_are_refused(client: httpx.Client) -> None:
    bomb = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"
    assert "refused" in refused(client, bomb)
    assert "levels deep" in refused(client, "a: " + "[" * 3000 + "]" * 3000)
    told = client.post("/v1/constitutions/lint", json={"text": bomb}).json()
    assert told["errors"] == 1
    deep = '{"recipe": ' + "[" * 100_000 + "]" * 100_000 + "}"
    json_type = {"content-type": "application/json"}
    answer = client.post("/v1/runs", content=deep, headers=json_type)
    assert (answer.status_code, "levels deep" in answer.json()["detail"]) == (400, True)
    quoted = json.dumps({"recipe": "x" + "[" * 1000})
    assert client.post("/v1/runs", content=quoted, headers=json_type).status_code == 422  # brackets in a text are text
    assert client.post("/v1/runs", content=b"{" * 5 + b"\xff", headers=json_type).status_code == 400
    large = client.post("/v1/runs", content=b" " * (5 << 20), headers=json_type)
    assert (large.status_code, large.headers["content-type"]) == (413, "application/problem+json")

    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 65_536

    assert client.post("/v1/runs", content=endless(), headers=json_type).status_code == 413


@pytest.mark.parametrize("name", ["..", "%2e%2e", "..%2fx", "a%2f..%2fb", "%00", "runs%5c..", ".service", "x" * 100])
def test_names_do_not_climb_out_of_the_workspace(client: httpx.Client, name: str) -> None:
    for path in (f"/v1/runs/{name}", f"/v1/runs/{name}/files/manifest.json", f"/v1/constitutions/{name}"):
        answer = client.get(path)
        assert answer.status_code in (404, 422), (path, answer.text)
    for file in ("..%2f..%2fcalls.sqlite", "..", "rows.sqlite", "%2fetc%2fpasswd"):
        assert client.get(f"/v1/runs/refused/files/{file}").status_code == 404


def test_other_sites_get_nothing(client: httpx.Client) -> None:
    body = {"recipe": RECIPE}
    for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}, {"origin": "null"}):
        assert client.post("/v1/recipes/check", json=body, headers=headers).status_code == 403
    rebound = client.get("/v1/runs", headers={"host": "evil.example"})
    assert rebound.status_code == 403  # a name of another site that leads to this machine
    simple = client.post("/v1/recipes/check", content=json.dumps(body), headers={"content-type": "text/plain"})
    assert simple.status_code == 422
    preflight = {"origin": "https://evil.example", "access-control-request-method": "GET"}
    asked = client.options("/v1/runs", headers=preflight)
    assert "access-control-allow-origin" not in asked.headers
    answer = client.get("/v1/runs")
    assert "'unsafe-inline'" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    for path in ("/v1/runs/refused/cancel", "/v1/labels/x/undo"):
        assert client.get(path).status_code in (404, 405)  # nothing is changed by GET


def test_slow_clients_are_let_go(place: Path) -> None:
    limits = {"receive_s": 0.3}
    with serving(place, limits=limits) as client:
        address = (client.base_url.host, client.base_url.port)
        head = b"POST /v1/runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n"
        for sent in (b"", b"GET /health HTTP/1.1\r\nHost: local", head + b"{"):
            with socket.create_connection(address, timeout=5) as slow:
                slow.sendall(sent)
                begun = time.monotonic()
                said = slow.recv(1000)
                assert time.monotonic() - begun < 3
                assert said == b"" or said.startswith(b"HTTP/1.1 408")
        with socket.create_connection(address, timeout=5) as drip:  # a byte now and then buys no time
            drip.sendall(b"GET /health HTTP/1.1\r\n")
            assert _sends(drip) < 40
        assert client.get("/health").status_code == 200


def _sends(drip: socket.socket) -> int:
    """How many of 40 bytes go through, one every 0.05 s."""
    for n in range(40):
        try:
            drip.sendall(b"X")
        except OSError:
            return n
        time.sleep(0.05)
    return 40


def test_floods_are_slowed_and_pages_bounded(place: Path) -> None:
    limits = {"rate": 5.0, "burst": 10, "page": 20}
    with serving(place, limits=limits) as client:
        answers = [client.get("/v1/runs") for _ in range(15)]
        assert [a.status_code for a in answers[:10]] == [200] * 10
        assert answers[-1].status_code == 429
        assert int(answers[-1].headers["retry-after"]) >= 1
        time.sleep(0.5)
        assert client.get("/v1/runs", params={"limit": 10_000}).status_code == 422


def test_jobs_that_wait_are_bounded(place: Path) -> None:
    with serving(place, limits={"jobs": 1, "queue": 1}) as client:
        slow = RECIPE.replace('play"}', 'play", delay: 5}')
        answers = [client.post("/v1/runs", json={"recipe": slow, "name": f"flood{i}"}).status_code for i in range(3)]
        assert answers == [201, 201, 429]
        client.post("/v1/runs/flood1/cancel")
        client.post("/v1/runs/flood0/cancel", params={"now": True})


def test_keys_have_roles_and_are_hashed(place: Path, tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        service = client.app.state.service  # type: ignore[attr-defined]
        keys = {role: service.keys.create(f"{role}-er", (role,)) for role in ("read", "label", "run", "admin")}
        for file in (tmp_path / "runs/.service").glob("service.sqlite*"):
            assert not any(key.split("_", 2)[2].encode() in file.read_bytes() for key in keys.values())

        def status(role: str, method: str, path: str, **more: Any) -> int:
            headers = {"authorization": f"Bearer {keys[role]}"} if role else {}
            return client.request(method, path, headers=headers, **more).status_code

        assert client.get("/health").status_code == 200
        for path in ("/v1/runs", "/v1/labels", "/metrics", "/v1/models", "/v1/runs/x/events"):
            assert status("", "GET", path) == 401
        assert client.get("/v1/runs", headers={"authorization": "Bearer tenet_abc_def"}).status_code == 401
        assert [status(r, "GET", "/v1/runs") for r in ("read", "label", "run", "admin")] == [200, 403, 200, 200]
        assert [status(r, "GET", "/v1/labels") for r in ("read", "label", "run", "admin")] == [403, 200, 403, 200]
        check = {"json": {"recipe": RECIPE}}
        assert [status(r, "POST", "/v1/recipes/check", **check) for r in ("read", "label", "run", "admin")] == [
            403, 403, 200, 200,
        ]  # fmt: skip
        service.keys.revoke("read-er")
        assert status("read", "GET", "/v1/runs") == 401


def test_the_pages_session_needs_its_csrf_token(place: Path, tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        service = client.app.state.service  # type: ignore[attr-defined]
        key = service.keys.create("ann", ("run",))
        assert client.post("/v1/session", json={"key": "tenet_x_y"}).status_code == 401
        opened = client.post("/v1/session", json={"key": key})
        cookie = opened.headers["set-cookie"].lower()
        assert all(word in cookie for word in ("httponly", "samesite=strict", "path=/"))
        assert client.get("/v1/runs").status_code == 200
        assert client.post("/v1/recipes/check", json={"recipe": RECIPE}).status_code == 403
        token = client.get("/v1/session").json()["csrf"]
        with_token = {"x-csrf-token": token}
        assert client.post("/v1/recipes/check", json={"recipe": RECIPE}, headers=with_token).status_code == 200
        assert client.request("DELETE", "/v1/session", headers=with_token).status_code == 204
        assert client.get("/v1/runs").status_code == 401


def test_the_services_ray_cluster_goes_into_every_recipe(tmp_path: Path) -> None:
    config = Config.model_validate(settings(tmp_path, models={"m": {"kind": "vllm", "model": "nano:assistant"}}))
    service = app.create(config, address="ray://head:10001").state.service
    scripted = {"kind": "scripted", "script": SCRIPT}
    played = {**scripted, "replicas": 2}
    given: Any = {"constitution": "nano", "models": {"m": {"model": "nano:assistant"}, "n": scripted, "p": played}}
    models = service.policy.recipe(given).data["models"]
    there = {"address": "ray://head:10001"}
    assert models == {"m": {"model": "nano:assistant", **there}, "n": scripted, "p": {**played, **there}}
    with pytest.raises(SettingsError, match="do not choose the Ray cluster"):
        service.policy.recipe({**given, "models": {"m": {"model": "nano:assistant", "address": "auto"}}})
    service.store.close()


def test_without_keys_only_this_machine_is_served(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "service"]
    where = ["workspace=" + str(tmp_path)]
    refused = subprocess.run([*command, "serve", *where, "--host", "0.0.0.0"], cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "tenet keys create" in refused.stderr
    made = [*command, "keys", "create", "ann", "--role", "run", "--workspace", str(tmp_path)]
    key = subprocess.run(made, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    caller = Keys(Store(tmp_path / ".service/service.sqlite")).caller(key)
    assert caller is not None
    assert caller.roles == {"read", "run"}
