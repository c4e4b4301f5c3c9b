"""Routes that change data: the admin token, the engine that may write, and a log line for each request."""

import hmac
import json
import logging
from typing import Annotated, Any

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, Field, SecretStr
from sqlalchemy import Connection, Engine

from fonte_alvo.parameters import PeriodQuery
from fonte_alvo.serving import PROBLEMS, problem

CHALLENGE = 'Bearer realm="admin"'
_BEARER = HTTPBearer(auto_error=False, description="The admin token, set by those who run this server.")
_log = logging.getLogger("uvicorn.error")
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    **PROBLEMS,
    401: problem("The admin token is missing or wrong.", WWW_Authenticate="string"),
    403: problem("This server has no admin, so nobody can change anything."),
}
# The description of a route that changes data.
CHANGING: dict[str, Any] = {"tags": ["changing"], "responses": _PROBLEMS}


class Changed(BaseModel):
    """The extent of a change."""

    rows: int = Field(description="The number of rows deleted or written.", examples=[1440])


def _admin_engine(request: Request, sent: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]) -> Engine:
    """Return the engine that may write, or raise 401 or 403 (RFC 6750) unless the request has the admin token."""
    token: SecretStr | None = request.state.admin_token
    if token is None:
        raise _refused(request, 403, "nothing can be changed here: the server has no admin database and token")
    if sent is None:
        raise _refused(request, 401, "the admin token is missing", CHALLENGE)
    # As bytes, because a header can hold more than ASCII; in constant time, so that timing reveals nothing.
    if not hmac.compare_digest(sent.credentials.encode("latin-1"), token.get_secret_value().encode()):
        raise _refused(request, 401, "the admin token is wrong", f'{CHALLENGE}, error="invalid_token"')
    admin: Engine = request.state.admin_engine
    return admin


AdminEngine = Annotated[Engine, Depends(_admin_engine)]


def _refused(request: Request, status: int, why: str, challenge: str | None = None) -> HTTPException:
    audit(request, logging.WARNING, status=status, refused=why)
    return HTTPException(status, why, {"WWW-Authenticate": challenge} if challenge else None)


def audit(request: Request, level: int = logging.INFO, **facts: object) -> None:
    """Log a request for a change, its client and its result on one line of key=value. Facts are never secret."""
    client = request.client.host if request.client else None
    line = {"action": f"{request.method} {request.scope['path']}", "client": client, **facts}
    _log.log(level, "audit %s", " ".join(f"{name}={json.dumps(value, default=str)}" for name, value in line.items()))


def delete_rows(connection: Connection, period: PeriodQuery) -> int:
    """Delete the rows of a period and return their number; other writers wait until the caller's transaction ends."""
    connection.exec_driver_sql("LOCK TABLE data IN SHARE ROW EXCLUSIVE MODE")
    return connection.exec_driver_sql(f"DELETE FROM data WHERE {period.condition()}", period.bounds()).rowcount
