"""How the control API reads a request and writes an answer: JSON in, JSON out.

Owns: the reading of bodies and queries, the JSON form of answers and errors. Does not know: the
daemon, what a route does.
"""

from __future__ import annotations

import json
from typing import Any, Final

from flask import Response, request
from werkzeug.exceptions import HTTPException

from shadowmesh.base import log
from shadowmesh.base.constants import MAX_API_BODY_BYTES
from shadowmesh.base.errors import MORE_DESCRIPTORS, OUT_OF_DESCRIPTORS, BadRequest, ControlError
from shadowmesh.control.guard import SECURITY_HEADERS, error_body
from shadowmesh.control.route import Refusal, Route
from shadowmesh.control.routes import RATE_LIMITED, ROUTES
from shadowmesh.control.schema import from_query

_log = log.get("api")

#: error.code of what the framework refuses, by HTTP status
_HTTP_CODES: Final = {
    400: ("bad_request", "the request could not be read"),
    404: ("not_found", "no such route: see " + ", ".join(sorted({r.path for r in ROUTES}))),
    405: ("method_not_allowed", "this route does not take this method"),
    413: ("too_large", f"the body is larger than {MAX_API_BODY_BYTES} bytes"),
    415: ("unsupported_media_type", "a body must be application/json"),
}


def json_answer(payload: dict[str, Any], status: int = 200) -> Response:
    return Response(json.dumps(payload) + "\n", status, content_type="application/json")


def report(answer: dict[str, Any], code: str, failing: list[str]) -> Response:
    """200, or 503 with an error that names the failing checks."""
    if not failing:
        return json_answer(answer)
    answer["error"] = {"code": code, "message": f"failing: {', '.join(failing)}"}
    return json_answer(answer, 503)


def refused(refusal: Refusal) -> Response:
    return error_answer(refusal.http_status, refusal.code, refusal.text)


def too_many() -> Response:
    response = refused(RATE_LIMITED)
    response.headers["Retry-After"] = "1"
    return response


def refuse_foreign_body() -> None:
    # A form or text body is what a web page can send without asking the browser's permission.
    # The server has read the body, so that a chunked one has a length too.
    if request.content_length and request.mimetype != "application/json":
        raise _UnsupportedMediaType


class _UnsupportedMediaType(HTTPException):
    code = 415


def read_query(route: Route) -> dict[str, object]:
    """Return the parameters of the query, each once and of its type."""
    schemas = {value.name: value.schema for value in route.query}
    found: dict[str, object] = {}
    for name, text in request.args.items(multi=True):
        if name in found:
            raise BadRequest(f'"{name[:40]}" stands twice in the query')
        found[name] = from_query(name, text, schemas[name]) if name in schemas else text
    return found


def read_object() -> dict[str, Any]:
    """Return the JSON object in the body; {} when there is no body."""
    data = request.get_data(cache=False)
    if not data:
        return {}
    try:
        # a key that stands twice would silently win over the first
        body = json.loads(data, object_pairs_hook=_unique_pairs)
    except RecursionError:
        raise BadRequest("the body is nested too deeply: send a flat JSON object") from None
    except ValueError as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from None
    if not isinstance(body, dict):
        raise BadRequest('the body must be a JSON object, such as {"peer": "host:port"}')
    return body


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return result


def add_headers(response: Response) -> Response:
    for name, value in SECURITY_HEADERS:
        response.headers.setdefault(name, value)
    return response


def error_answer(status: int, code: str, message: str) -> Response:
    return Response(error_body(code, message), status, content_type="application/json")


def control_error(error: ControlError) -> Response:
    return error_answer(error.http_status, error.code, str(error))


def http_error(error: HTTPException) -> Response:
    status = error.code or 500
    code, message = _HTTP_CODES.get(status, ("http_error", error.name))
    response = error_answer(status, code, message)
    allowed = getattr(error, "valid_methods", None)
    if allowed:
        response.headers["Allow"] = ", ".join(sorted(allowed))
    return response


def system_error(error: OSError) -> Response:
    if error.errno not in OUT_OF_DESCRIPTORS:
        return internal_error(error)
    _log.limited(60).warning(
        "request failed for want of a descriptor",
        path=request.path,
        cause=error,
        remedy=MORE_DESCRIPTORS,
    )
    return error_answer(
        503, "no_descriptors", f"the daemon cannot look: {error.strerror}; {MORE_DESCRIPTORS}"
    )


def internal_error(error: Exception) -> Response:
    # Our bug. The log gets all of it, the caller nothing that could hold a secret or a path.
    del error  # it is the exception being handled, which the log asks for itself
    _log.exception("request failed", method=request.method, path=request.path)
    return error_answer(500, "internal", "the daemon failed to answer: see its log")
