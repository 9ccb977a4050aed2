"""Errors as problem details (RFC 9457); under /v1/chat and /v1/models in the shape that OpenAI's clients read."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from tenet.errors import BudgetExceeded, EngineError, InputError, LedgerError, RunFolderError, TenetError

log = logging.getLogger("tenet.api")

_TITLES = {
    400: "Bad request", 401: "Not authenticated", 403: "Not allowed", 404: "Not found", 405: "Method not allowed",
    406: "Not acceptable", 408: "Too slow", 409: "Conflict", 413: "Too large", 415: "Wrong media type",
    416: "Range not satisfiable", 422: "Invalid input", 429: "Too many requests", 500: "Internal error",
    502: "The model failed", 503: "Not available", 507: "No room",
}  # fmt: skip


class Fault(BaseModel):
    """One thing that is wrong with a request."""

    where: str = ""
    """The field, or file and line."""
    what: str
    fix: str = ""
    """What would be right."""


class Problem(BaseModel):
    """What went wrong (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[Fault] = []


class Refusal(Exception):
    """An answer that is an error; raised wherever a request is worked on."""

    def __init__(self, status: int, detail: str, *, code: str = "", errors: list[Fault] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.code, self.errors = status, detail, code, errors or []
        self.headers: dict[str, str] = {}


def answer(
    path: str, status: int, detail: str, *, code: str = "", errors: list[Fault] | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:  # fmt: skip
    """The response that tells of a problem."""
    title = _TITLES.get(status, "Error")
    if path.startswith(("/v1/chat/", "/v1/models")):
        kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(status)
        kind = kind or ("invalid_request_error" if status < 500 else "server_error")
        first = errors[0].where if errors else None
        error = {"message": detail, "type": kind, "param": first or None, "code": code or None}
        return JSONResponse({"error": error}, status, headers)
    problem = Problem(title=title, status=status, detail=detail, errors=errors or [])
    return JSONResponse(problem.model_dump(), status, headers, media_type="application/problem+json")


def status_of(error: TenetError) -> int:
    """The HTTP status of an error of ours."""
    if isinstance(error, RunFolderError):
        return 409
    if isinstance(error, InputError):
        return 422
    if isinstance(error, BudgetExceeded):
        return 429
    if isinstance(error, EngineError):
        return 502
    return 507 if isinstance(error, LedgerError) else 500


def faults_of(error: InputError) -> list[Fault]:
    """What is wrong, for a page that marks the place."""
    return [Fault(where=error.where, what=error.what, fix=error.fix)]


def install(app: FastAPI) -> None:
    """Makes every error of the application a problem."""

    async def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, Refusal)
        path = request.url.path
        return answer(path, error.status, error.detail, code=error.code, errors=error.errors, headers=error.headers)

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return answer(request.url.path, error.status_code, str(error.detail), headers=dict(error.headers or {}))

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        raw: list[Any] = list(error.errors())
        faults = [Fault(where=".".join(str(p) for p in e["loc"]), what=str(e["msg"])) for e in raw[:20]]
        # The values themselves are not quoted: one of them may be a secret in the wrong field.
        status = 400 if any(e["type"] == "json_invalid" for e in raw) else 422
        return answer(request.url.path, status, "; ".join(f"{f.where}: {f.what}" for f in faults[:5]), errors=faults)

    async def ours(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, TenetError)
        status = status_of(error)
        if status >= 500:
            log.warning("%s %s: %s", request.method, request.url.path, error)
        errors = faults_of(error) if isinstance(error, InputError) else []
        return answer(request.url.path, status, str(error), errors=errors)

    async def broken(request: Request, error: Exception) -> JSONResponse:
        return answer(request.url.path, 500, f"a fault of ours: {type(error).__name__}; the server's log has it")

    app.add_exception_handler(Refusal, refused)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(TenetError, ours)
    app.add_exception_handler(Exception, broken)
