"""Routes of constitutions: list, read, lint, diff, save a version, preview an edit as a job."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
from collections.abc import Generator
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field, model_validator

import constitution as constitutions
from constitution import diff as by_meaning
from constitution.lint import Finding, lint
from constitution.loader import packaged
from constitution.schema import Stage
from service.api.context import NAME, Name, Reads, Runs, Service, The
from service.api.problems import Refusal
from tenet._complaints import is_list, is_map
from tenet.errors import ConstitutionError, InputError
from tenet.settings import read

router = APIRouter(prefix="/v1/constitutions", tags=["constitutions"])
_VERSION = re.compile(r"(?P<name>.+)\.v(?P<n>\d{1,6})")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,80}\.yaml")
_LONGEST = 2_000_000


class About(BaseModel):
    """A constitution in a list."""

    name: str
    saved: bool
    """Whether it was saved here; the others come with the package."""
    versions: list[int]
    """Of a saved one; its plain name means the last."""
    error: str = ""
    """Why it cannot be loaded."""
    hash: str = ""
    version: str = ""
    """The author's own, as the file says it."""
    serves: str = ""
    principles: int = 0


class AboutList(BaseModel):
    constitutions: list[About]


class Whole(BaseModel):
    """A constitution with its text."""

    name: str
    saved: bool
    versions: list[int]
    text: str
    """The YAML file."""
    hash: str
    constitution: dict[str, Any]
    """As it is used, with its parents joined in."""


class Source(BaseModel, extra="forbid"):
    """A constitution by name, or as YAML text that was not saved yet."""

    name: Annotated[str, Field(max_length=100)] = ""
    text: Annotated[str, Field(max_length=_LONGEST)] = ""

    @model_validator(mode="after")
    def _one(self) -> Source:
        if bool(self.name) == bool(self.text):
            raise ValueError("give either name or text")
        return self


class LintIn(Source):
    """What to lint, and which rules to leave out."""

    ignore: Annotated[list[str], Field(max_length=50)] = []
    stages: Annotated[list[Stage], Field(max_length=4)] = []
    """The stages that it is meant for; empty: those that it has texts for."""


class Linted(BaseModel):
    """What is to be mended; a text without errors can be used."""

    errors: int
    warnings: int
    findings: list[Finding]


class DiffIn(BaseModel, extra="forbid"):
    old: Source
    new: Source


class SaveIn(BaseModel, extra="forbid"):
    """A text to keep as the next version of a name."""

    name: Annotated[str, Field(pattern=NAME)]
    text: Annotated[str, Field(min_length=1, max_length=_LONGEST)]


class Saved(BaseModel):
    """Where the text is now; recipes name it so."""

    name: str
    version: int
    hash: str


def known(service: Service) -> list[str]:
    """All names: packaged ones, then saved ones."""
    return [*packaged(), *sorted(_saved(service))]


def _saved(service: Service) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for path in service.constitutions.glob("*.yaml"):
        if match := _VERSION.fullmatch(path.stem):
            found.setdefault(match["name"], []).append(int(match["n"]))
    return {name: sorted(ns) for name, ns in found.items()}


@router.get("")
async def listed(service: The, _: Reads) -> AboutList:
    """Packaged constitutions, then those that were saved here."""
    return AboutList(constitutions=await asyncio.to_thread(_abouts, service))


def _abouts(service: Service) -> list[About]:
    made: list[About] = []
    saved = _saved(service)
    for name in known(service):
        about = About(name=name, saved=name in saved, versions=saved.get(name, []))
        try:
            c = constitutions.load(_path(service, name))
            about.hash, about.version, about.serves, about.principles = c.hash, c.version, c.serves, len(c.principles)
        except InputError as error:
            about.error = _plain(str(error), service)
        made.append(about)
    return made


@router.get("/{name}")
async def whole(
    name: Name, service: The, _: Reads, version: Annotated[int | None, Query(ge=1, lt=10**6)] = None
) -> Whole:
    """A constitution's text, and what it amounts to."""
    saved = _saved(service).get(name, [])
    if version is not None and version not in saved:
        raise Refusal(404, f"{name!r} has no version {version}")
    path = _path(service, f"{name}.v{version}" if version else name)
    with draft_errors(service):
        c = await asyncio.to_thread(constitutions.load, path)
    text = await asyncio.to_thread(path.read_text, "utf-8")
    dump = c.model_dump(mode="json")
    return Whole(name=name, saved=bool(saved), versions=saved, text=text, hash=c.hash, constitution=dump)


@router.post("/lint")
async def check(body: LintIn, service: The, _: Reads) -> Linted:
    """Errors and warnings, each with its line and what would be right; nothing is kept."""

    def work() -> list[Finding]:
        with opened(service, body) as path:
            return lint(path, body.ignore, body.stages)

    try:
        found = await asyncio.to_thread(work)
    except ConstitutionError as error:  # what a text may not extend is refused before it is read any further
        found = [Finding(level="error", rule="extends", file="the text", line=1, what=error.what, fix=error.fix)]
    shown = [f.model_copy(update={"file": _plain(f.file, service), "what": _plain(f.what, service)}) for f in found]
    errors = sum(f.level == "error" for f in shown)
    return Linted(errors=errors, warnings=len(shown) - errors, findings=shown)


@router.post("/diff", response_model=by_meaning.Edit)
async def diff(body: DiffIn, service: The, _: Reads) -> by_meaning.Edit:
    """What was added, removed, reworded or re-weighted, and which questions change with it."""

    def work() -> by_meaning.Edit:
        with opened(service, body.old) as old, opened(service, body.new) as new:
            edit = by_meaning.diff(by_meaning.open_side(old), by_meaning.open_side(new))
        return by_meaning.Edit.model_validate_json(_plain(edit.model_dump_json(), service))

    with draft_errors(service):
        return await asyncio.to_thread(work)


@router.post("", status_code=201)
async def save(body: SaveIn, service: The, _: Runs) -> Saved:
    """Keeps a text as the next version of a name. A text that cannot be loaded is refused; warnings are not."""
    if body.name in packaged() or _VERSION.fullmatch(body.name):
        raise Refusal(409, f"{body.name!r} comes with the package, or ends like a version: choose another name")

    def work() -> Saved:
        with opened(service, Source(text=body.text)) as path:
            loaded = constitutions.load(path)
        # Written beside its place first: a version that is there is whole, whenever the service is killed.
        whole = service.constitutions / f".{secrets.token_hex(8)}"
        try:
            whole.write_text(body.text, encoding="utf-8", newline="\n")
            while True:
                version = max(_saved(service).get(body.name, [0])) + 1
                with contextlib.suppress(FileExistsError):
                    os.link(whole, service.constitutions / f"{body.name}.v{version}.yaml")
                    return Saved(name=body.name, version=version, hash=loaded.hash)
        finally:
            whole.unlink(missing_ok=True)

    with draft_errors(service):
        return await asyncio.to_thread(work)


def _path(service: Service, name: str) -> Path:
    """The file of a name. Refusal 404."""
    if name in packaged():
        return Path(constitutions.__file__).parent / "files" / f"{name}.yaml"
    versions = _saved(service).get(name)
    stem = f"{name}.v{versions[-1]}" if versions else name
    path = service.constitutions / f"{stem}.yaml"
    if "/" in name or name.startswith(".") or not path.is_file():
        raise Refusal(404, f"there is no constitution {name[:80]!r}")
    return path


@contextlib.contextmanager
def opened(service: Service, source: Source) -> Generator[Path]:
    """The file of a source; a text lies beside the saved ones for as long as it is looked at."""
    if source.name:
        yield _path(service, source.name)
        return
    check_parents(source.text)
    service.constitutions.mkdir(parents=True, exist_ok=True)
    path = service.constitutions / f".draft-{secrets.token_hex(8)}.yaml"
    path.write_text(source.text, encoding="utf-8", errors="replace", newline="\n")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def check_parents(text: str) -> None:
    """ConstitutionError if a text extends what is neither packaged nor saved here: no path leaves the folder."""
    try:
        data = read(text, "the text", ConstitutionError).data
    except ConstitutionError:
        return  # whoever loads it says what is wrong with it
    given: Any = data.get("extends", []) if is_map(data) else []
    parents = given if is_list(given) else [given]
    for parent in parents:
        if isinstance(parent, str) and parent not in packaged() and not _FILE.fullmatch(parent):
            fix = f"packaged: {', '.join(packaged())}; saved ones as NAME.v1.yaml"
            what = f"{parent[:80]!r} is no constitution that a text may extend"
            raise ConstitutionError(what, where="extends", fix=fix)


@contextlib.contextmanager
def draft_errors(service: Service) -> Generator[None]:
    """Errors say "the text" where they would name a passing file."""
    try:
        yield
    except ConstitutionError as error:
        what, where, fix = (_plain(t, service) for t in (error.what, error.where, error.fix))
        raise ConstitutionError(what, where=where, fix=fix) from None


def _plain(text: str, service: Service) -> str:
    folder = re.escape(str(service.constitutions))
    return re.sub(rf"(?:{folder}/)?\.draft-[0-9a-f]{{16}}\.yaml", "the text", text)
