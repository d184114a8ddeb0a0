"""The metrics port: what Prometheus scrapes, without a token.

Owns: the WSGI application of `monitoring.prometheus_port`. Does not know: the metrics
(`insight.metrics` has them), sockets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shadowmesh.control.guard import SECURITY_HEADERS, Guard, refuse
from shadowmesh.insight.metrics import CONTENT_TYPE, render

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from prometheus_client.core import CollectorRegistry

    from shadowmesh.config import HostPort


def make_metrics_app(registry: CollectorRegistry, listen: HostPort) -> WSGIApplication:
    """Return the WSGI application of `monitoring.prometheus_port`.

    GET /metrics only, without a token: the port is on loopback and tells no secret. Requests from
    web pages and for foreign hosts are refused all the same.
    """

    def metrics_app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ.get("PATH_INFO") != "/metrics":
            return refuse(start_response, "404 Not Found", "not_found", "see /metrics")
        if environ.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            return refuse(
                start_response,
                "405 Method Not Allowed",
                "method_not_allowed",
                "use GET",
                [("Allow", "GET, HEAD")],
            )
        body = render(registry)
        start_response(
            "200 OK",
            [
                ("Content-Type", CONTENT_TYPE),
                ("Content-Length", str(len(body))),
                *SECURITY_HEADERS,
            ],
        )
        return [body] if environ["REQUEST_METHOD"] == "GET" else []

    return Guard(metrics_app, listen, token=None)
