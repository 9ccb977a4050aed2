"""What a recipe that came over HTTP may name: files under the data roots, listed addresses, listed scripts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from constitution.loader import packaged
from service.api.settings import Config
from tenet._complaints import is_list, is_map
from tenet.engines._cluster import has_replicas
from tenet.errors import DataError, SettingsError
from tenet.settings import Document, read

_HUB = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")
_ENGINE_FILES = ("model", "lora")
DEMO = Path(__file__).parent.parent / "demo_files"
"""The demo's prompts, which every service may read."""


class Policy:
    """The rules of one service."""

    def __init__(self, config: Config, constitutions: Path, address: str | None = None) -> None:
        self._allow, self._address = config.allow, address
        self.roots = [Path(p).resolve() for p in config.data]
        self._constitutions = constitutions

    def recipe(
        self, given: str | dict[str, Any], overrides: Iterable[str] = (), own_models: bool = False
    ) -> Document:
        """The recipe, with every path in it made absolute; `own_models` are the service's, which may name anything.

        SettingsError or DataError for what it may not name.
        """
        doc = read(given, "the recipe") if isinstance(given, str) else Document(given, "the recipe")
        overridden = any(o.startswith("models") for o in overrides)
        doc = doc.override(overrides)
        if not is_map(doc.data):
            raise SettingsError("is not a mapping", where=doc.where, fix="write prompts:, constitution:, models:")
        data = dict(doc.data)
        if data.get("out"):
            raise SettingsError("a service chooses the folder", where=doc.place("out"), fix="take it out")
        if isinstance(rules := data.get("constitution"), str):
            data["constitution"] = self.constitution(rules, doc.place("constitution"))
        if is_map(prompts := data.get("prompts")) and "path" in prompts:
            data["prompts"] = {**prompts, "path": self._prompts(prompts, doc)}
        if is_map(models := data.get("models")) and not (own_models and not overridden):
            data["models"] = {name: self._engine(doc, name, m) for name, m in models.items()}
        return replace(doc, data=data)

    def _prompts(self, prompts: dict[str, Any], doc: Document) -> Any:
        hub = self._allow.hub and prompts.get("kind") == "dataset"

        def one(path: Any, place: str) -> Any:
            if not isinstance(path, str) or not path or (hub and self._is_hub_name(path)):
                return path
            return str(self.file(path, place))

        path = prompts["path"]
        if is_list(path):
            return [one(p, doc.place(("prompts", "path", i))) for i, p in enumerate(path)]
        return one(path, doc.place("prompts.path"))

    def constitution(self, name: str, where: str = "constitution") -> str:
        """A packaged name as it is; a saved one or a path as an absolute path under a root."""
        if name in packaged():
            return name
        if _HUB.fullmatch(name) and "/" not in name:
            stem = name.removesuffix(".yaml")
            versions = {int(p.stem.rpartition(".v")[2]): p for p in self._constitutions.glob(f"{stem}.v*.yaml")
                        if re.fullmatch(rf"{re.escape(stem)}\.v\d{{1,6}}", p.stem)}  # fmt: skip
            # The plain name is the last version now: a run that begins stays with it.
            saved = versions[max(versions)] if versions else self._constitutions / f"{stem}.yaml"
            if saved.is_file():
                return str(saved.resolve())
        if "/" not in name and not name.endswith((".yaml", ".yml")):
            known = ", ".join(packaged())
            raise SettingsError(f"there is no constitution {name!r}", where=where, fix=f"packaged: {known}")
        return str(self.file(name, where))

    def file(self, name: str, where: str) -> Path:
        """A file or folder under a data root. DataError for what lies elsewhere, links included, or is not there."""
        for root in (*self.roots, DEMO):
            try:
                path = (root / name).resolve()
                if path.is_relative_to(root) and (path.is_file() or path.is_dir()):
                    return path
            except (OSError, ValueError):  # a name that is no name: too long, a null byte
                continue
        fix = "a path under one of the service's data folders"
        raise DataError(f"there is no file {name!r} that the service may read", where=where, fix=fix)

    def _engine(self, doc: Document, name: str, given: Any) -> Any:
        if not is_map(given):
            return given
        made, kind = dict(given), given.get("kind", "vllm")

        def refuse(key: str, what: str, known: Sequence[str] = ()) -> SettingsError:
            fix = "the service's settings list what is allowed under allow:" + (f" {', '.join(known)}" if known else "")
            return SettingsError(what, where=doc.place(("models", name, key)), fix=fix)

        if kind == "openai":
            url = str(given.get("base_url", "http://127.0.0.1:8000/v1")).rstrip("/")
            if url not in [u.rstrip("/") for u in self._allow.base_urls]:
                raise refuse("base_url", "this address is not one that API users may send requests to")
            if given.get("key_env", "OPENAI_API_KEY") not in ("", *self._allow.key_envs):
                raise refuse("key_env", "this variable is not one whose key may be sent", self._allow.key_envs)
        if kind == "scripted" and given.get("script", "tenet.engines.scripted:echo") not in self._allow.scripts:
            raise refuse("script", "this script is not one that API users may run", self._allow.scripts)
        if given.get("address") not in (None, self._address):
            raise refuse("address", "recipes do not choose the Ray cluster: the service was started with its own")
        for key in _ENGINE_FILES if kind != "openai" else ():
            value = given.get(key)
            if isinstance(value, str) and not (key == "model" and self._is_model_name(value)):
                made[key] = str(self.file(value, doc.place(("models", name, key))))
        if self._address and has_replicas(given):
            made["address"] = self._address
        return made

    def _is_model_name(self, name: str) -> bool:
        return name.startswith("nano:") or (self._allow.hub and self._is_hub_name(name))

    @staticmethod
    def _is_hub_name(name: str) -> bool:
        # A folder of that name beside the service would be read in the hub's place.
        return bool(_HUB.fullmatch(name)) and ".." not in name and not Path(name).exists()
