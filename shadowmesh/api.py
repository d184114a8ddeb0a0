"""The control API: HTTP routes over a `Control`.

Owns: routes, what a body may hold, the JSON form of errors. Who may ask at all is decided before,
in `guard`. Does not know: gevent, links, how the daemon does what it is asked.

A route that waits (POST /connect) blocks only its caller: the server runs each request in a
greenlet of its own.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, Protocol

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from shadowmesh import log
from shadowmesh.config.values import remote
from shadowmesh.constants import MAX_API_BODY_BYTES
from shadowmesh.errors import BadRequest, ControlError
from shadowmesh.guard import AUTHORISED, SECURITY_HEADERS, Guard, error_body

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from shadowmesh.config import HostPort
    from shadowmesh.status import Health, Snapshot

_log = log.get("api")

#: error.code of what the framework refuses, by HTTP status
_HTTP_CODES: Final = {
    400: ("bad_request", "the request could not be read"),
    404: ("not_found", "no such route: see /connect, /disconnect, /status, /health, /metrics"),
    405: ("method_not_allowed", "this route does not take this method"),
    413: ("too_large", f"the body is larger than {MAX_API_BODY_BYTES} bytes"),
    415: ("unsupported_media_type", "a body must be application/json"),
}


class Control(Protocol):
    """What the API asks of the daemon. Failures are `ControlError`s."""

    def connect(self, peer: str | None) -> Snapshot:
        """Connect and wait for the outcome.

        Args:
            peer: ``host:port``; None: the configured one.
        """
        ...

    def disconnect(self) -> Snapshot: ...

    def status(self) -> Snapshot: ...

    def health(self) -> Health: ...


def create_app(
    control: Control,
    token: str,
    listen: HostPort,
    metrics_registry: CollectorRegistry | None = None,
) -> Flask:
    """Return the WSGI application of the control API.

    Args:
        token: the bearer token; compared in constant time, never logged or sent.
        listen: address and port that the server is really bound to; Host must name it.
        metrics_registry: what GET /metrics tells; None: metrics are off, the route is a 404.
    """
    # No static folder: Flask would add a route for it.
    app = Flask("shadowmesh.api", static_folder=None, template_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_API_BODY_BYTES
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    _add_routes(app, control, metrics_registry)
    app.before_request(_refuse_foreign_body)
    app.after_request(_add_headers)
    app.register_error_handler(ControlError, _control_error)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _internal_error)
    app.wsgi_app = Guard(  # type: ignore[method-assign]
        app.wsgi_app, listen, token=token, open_paths=frozenset({"/health"})
    )
    return app


def _add_routes(app: Flask, control: Control, metrics_registry: CollectorRegistry | None) -> None:
    @app.post("/connect")
    def connect() -> Response:
        body = _read_object({"peer"})
        return _json(control.connect(_checked_peer(body.get("peer"))).to_dict())

    @app.post("/disconnect")
    def disconnect() -> Response:
        _read_object(set())
        return _json(control.disconnect().to_dict())

    @app.get("/status")
    def status() -> Response:
        return _json(control.status().to_dict())

    @app.get("/health")
    def health() -> Response:
        report = control.health()
        # Texts name addresses and files: only for who has shown the token.
        answer = report.to_dict(details=bool(request.environ.get(AUTHORISED)))
        if not report.ok:
            names = ", ".join(check.name for check in report.failing)
            answer["error"] = {"code": "unhealthy", "message": f"failing: {names}"}
        return _json(answer, 200 if report.ok else 503)

    if metrics_registry is not None:
        _add_metrics_route(app, metrics_registry)


def _add_metrics_route(app: Flask, registry: CollectorRegistry) -> None:
    # Not at the top: without metrics the library stays out of the daemon's memory.
    from shadowmesh import metrics

    @app.get("/metrics")
    def metrics_text() -> Response:
        return Response(metrics.render(registry), content_type=metrics.CONTENT_TYPE)


def _json(payload: dict[str, Any], status: int = 200) -> Response:
    return Response(json.dumps(payload) + "\n", status, content_type="application/json")


def _refuse_foreign_body() -> None:
    # A form or text body is what a web page can send without asking the browser's permission.
    # The server has read the body, so that a chunked one has a length too.
    if request.content_length and request.mimetype != "application/json":
        raise _UnsupportedMediaType


class _UnsupportedMediaType(HTTPException):
    code = 415


def _read_object(known: set[str]) -> dict[str, Any]:
    """Return the body as a dict with no other keys than known; {} when there is no body."""
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
    unknown = sorted(set(body) - known)
    if unknown:
        expected = ", ".join(sorted(known)) or "no fields"
        raise BadRequest(f"unknown field {unknown[0][:40]!r}: this route knows {expected}")
    return body


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return result


def _checked_peer(peer: object) -> str | None:
    """Return peer when it is a ``host:port`` as in the configuration, or None."""
    if peer is None:
        return None
    if not isinstance(peer, str):
        raise BadRequest('peer must be a string, "host:port"')
    try:
        remote(peer)
    except ValueError as error:
        raise BadRequest(f"peer is not host:port: {error}") from None
    return peer


def _add_headers(response: Response) -> Response:
    response.headers.extend(SECURITY_HEADERS)
    return response


def _error(status: int, code: str, message: str) -> Response:
    return Response(error_body(code, message), status, content_type="application/json")


def _control_error(error: ControlError) -> Response:
    return _error(error.http_status, error.code, str(error))


def _http_error(error: HTTPException) -> Response:
    status = error.code or 500
    code, message = _HTTP_CODES.get(status, ("http_error", error.name))
    response = _error(status, code, message)
    allowed = getattr(error, "valid_methods", None)
    if allowed:
        response.headers["Allow"] = ", ".join(sorted(allowed))
    return response


def _internal_error(error: Exception) -> Response:
    # Our bug. The log gets all of it, the caller nothing that could hold a secret or a path.
    del error  # it is the exception being handled, which the log asks for itself
    _log.exception("request failed", method=request.method, path=request.path)
    return _error(500, "internal", "the daemon failed to answer: see its log")
