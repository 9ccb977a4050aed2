"""The page: its files, and a session that a browser opens with a key and keeps in a cookie of this site alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field

from service.api.context import The
from service.api.guard import COOKIE
from service.api.keys import ANYONE, SESSION_S, Caller
from service.api.problems import Refusal

router = APIRouter(prefix="/v1/session", tags=["session"])
PAGE = Path(__file__).parent.parent / "page"


class LogIn(BaseModel, extra="forbid"):
    """A key, given once."""

    key: Annotated[str, Field(min_length=1, max_length=200)]


class Session(BaseModel):
    """Who the page speaks for."""

    name: str
    roles: list[str]
    csrf: str
    """The value of the header `X-CSRF-Token` on every request that changes something."""
    keys: bool
    """Whether the service has keys; without them everybody on this machine may do everything."""


@router.post("")
async def log_in(body: LogIn, request: Request, response: Response, service: The) -> Session:
    """Opens a session of twelve hours. The cookie is HttpOnly and SameSite=Strict."""
    if not service.keys.any:
        return _told(ANYONE, False)
    opened = service.keys.log_in(body.key)
    if opened is None:
        raise Refusal(401, "this key opens nothing")
    cookie, caller = opened
    response.set_cookie(
        COOKIE, cookie, max_age=int(SESSION_S), httponly=True, samesite="strict", path="/",
        secure=request.url.scheme == "https",
    )  # fmt: skip
    return _told(caller, True)


@router.get("")
async def who(request: Request, service: The) -> Session:
    """Who is logged in; 401 if nobody is."""
    caller: Caller | None = request.state.caller
    if caller is None:
        raise Refusal(401, "nobody is logged in")
    return _told(caller, service.keys.any)


@router.delete("", status_code=204)
async def log_out(request: Request, service: The) -> Response:
    """Ends the session."""
    if cookie := request.cookies.get(COOKIE):
        service.keys.log_out(cookie)
    response = Response(status_code=204)
    response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
    return response


def _told(caller: Caller, keys: bool) -> Session:
    return Session(name=caller.name, roles=sorted(caller.roles), csrf=caller.csrf, keys=keys)


def mount(app: FastAPI) -> None:
    """Serves the page's files, if the package has them, under everything that no route takes."""
    if PAGE.is_dir():
        app.mount("/", StaticFiles(directory=PAGE, html=True), name="page")
