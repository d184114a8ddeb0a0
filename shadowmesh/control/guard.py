"""The gate in front of the control API and of the metrics port.

Owns: who may ask at all. It looks at a request's head only, as WSGI middleware, so that a refusal
costs microseconds and no framework code runs for a caller who has not shown a right.
Does not know: routes (it is told which right a method and a path need), bodies, what the application
behind it does, gevent.

::

    request --> Host --> Origin/Referer --> right --> place --> rate --> application
                403           403          401, 403    503      429

The right comes from the token, which gives all of them, or over the Unix socket from the caller's
credentials. A web page in the operator's browser can reach loopback too. It cannot forge Host (so a
name that was re-bound to 127.0.0.1 is caught), it cannot leave out Origin or Referer on the requests
that matter, and it does not know the token. The port in Host is nobody's proof: it is another one
behind `ssh -L`, and a foreign page says whatever port it likes.

One page may ask: the dashboard, which this server serves itself. It opens a WebSocket, for which
browsers always send Origin and never Authorization. So on the paths in `page_paths`, and only for
a WebSocket upgrade, an Origin is let in that is this very server under the name by which it was
asked, and the token may come as a subprotocol. All that the page can do there is listen: what
changes something stays closed to every page, this one included.
"""

from __future__ import annotations

import hmac
import json
import re
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from shadowmesh.base import log
from shadowmesh.base.rate import FairRate, TokenBucket
from shadowmesh.control.callers import Caller, of_address
from shadowmesh.control.rights import Right, refusal

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from shadowmesh.config import HostPort

# A program with an old token may try many times a second.
_log = log.get("api").limited(10.0)

#: key in the WSGI environment, set here: the `Right` that the request has shown
RIGHT: Final = "shadowmesh.right"

#: key in the WSGI environment: the `Caller` at the other end of the connection
CALLER: Final = "shadowmesh.caller"

#: key in the WSGI environment: the server's function that keeps the connection's place for one who
#: may change something; False when all such places are taken
HOLD: Final = "shadowmesh.hold"

#: key in the WSGI environment of a request for a WebSocket: the server's function that grants it
UPGRADE: Final = "shadowmesh.upgrade"

#: key in the WSGI environment: the socket that the request came over, for an answer that goes on
#: until its reader has had enough
CONNECTION: Final = "shadowmesh.connection"

#: shorter tokens are refused at construction: 32 url-safe characters are 192 bits
MIN_TOKEN_CHARS: Final = 32

#: how a page, which cannot set Authorization on a WebSocket, offers the token as a subprotocol
BEARER_PREFIX: Final = "bearer."

#: on every answer, errors included
SECURITY_HEADERS: Final = (
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", "default-src 'none'"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
)

# Requests per second and burst, of all clients together. They bound what local programs can take
# of the hub, which also carries the WSS path; a status poll every 100 ms uses a tenth. /health has
# a rate of its own, so that a flood elsewhere does not make a supervisor restart the daemon.
AUTHORISED_RATE: Final = (100.0, 200.0)
OPEN_RATE: Final = (50.0, 100.0)
# Of each client beside that: whoever floods uses up the rate of all, and not the other's own.
OWN_RATE: Final = (5.0, 20.0)
# Failures only. A right token is let in even while this bucket is empty: otherwise any local
# user could lock the operator out, and guessing 256 bits is not what the limit is against. A refusal
# costs less than any answer, so what may ask without a token may also be refused as often: only a
# flood gets 429 for want of a token instead of 401.
FAILED_RATE: Final = OPEN_RATE


def error_body(code: str, message: str) -> bytes:
    """Return the JSON body of an error answer. Source: interface, "Control API"."""
    return (json.dumps({"error": {"code": code, "message": message}}) + "\n").encode("ascii")


def refuse(
    start_response: StartResponse,
    status: str,
    code: str,
    message: str,
    extra: Iterable[tuple[str, str]] = (),
) -> list[bytes]:
    """Answer with a JSON error, as a WSGI application does.

    The connection is closed: the body of a refused request is not worth reading.
    """
    body = error_body(code, message)
    headers = [
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
        ("Connection", "close"),
        *SECURITY_HEADERS,
        *extra,
    ]
    start_response(status, headers)
    return [body]


def bracketed(host: str) -> str:
    """Return host as it stands in a URL: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host else host


#: a Host header: a name or an address, IPv6 in brackets, and perhaps a port
_HOST: Final = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(?::[0-9]{1,5})?", re.IGNORECASE)


def own_names(listen: HostPort) -> frozenset[str]:
    """Return the names in a Host header that are ours, in lower case and without a port."""
    return frozenset({"localhost", "127.0.0.1", "[::1]", bracketed(listen.host.lower())})


class Guard:
    """WSGI middleware that refuses before the application is asked."""

    def __init__(
        self,
        app: WSGIApplication,
        listen: HostPort,
        *,
        token: str | None,
        needed: Callable[[str, str], Right] | None = None,
        page_paths: frozenset[str] = frozenset(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Put the guard in front of app.

        Args:
            listen: where the server listens; Host may name it.
            token: what gives every right; None: every path is open (a loopback port that only
                tells).
            needed: tells the right that a method and a path need; None: `Right.LOOK` for all. A
                request that carries a token is refused all the same when it is wrong.
            page_paths: paths of WebSockets that our own page may open.
            clock: monotonic seconds.
        Raises:
            ValueError: the token is short enough to be guessed.
        """
        if token is not None and len(token) < MIN_TOKEN_CHARS:
            raise ValueError(f"an API token needs at least {MIN_TOKEN_CHARS} characters")
        self._app = app
        self._names = own_names(listen)
        self._token = None if token is None else token.encode("utf-8")
        self._needed = needed
        self._page_paths = page_paths
        self._clock = clock
        self._authorised = FairRate(AUTHORISED_RATE, OWN_RATE)
        self._open = FairRate(OPEN_RATE, OWN_RATE)
        self._failed = TokenBucket(*FAILED_RATE)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if not self._is_own_name(environ.get("HTTP_HOST", "")):
            return refuse(
                start_response,
                "403 Forbidden",
                "forbidden_host",
                "the Host header does not name this service: use its listen address or localhost",
            )
        if "HTTP_REFERER" in environ or not self._may_have_origin(environ):
            return refuse(
                start_response,
                "403 Forbidden",
                "forbidden_origin",
                "requests from web pages (with Origin or Referer) are not accepted",
            )
        caller = _caller(environ)
        right = self._right(environ, caller)
        if right is None or (self._token is not None and right < self._needs(environ)):
            return self._refuse(environ, start_response, caller, right)
        if right is Right.CHANGE and HOLD in environ and not environ[HOLD]():
            return refuse(
                start_response,
                "503 Service Unavailable",
                "too_many_connections",
                "too many requests are being answered: wait for some of them to end",
                [("Retry-After", "1")],
            )
        rate = self._authorised if right else self._open
        if not rate.take(caller.client, self._clock()):
            return _too_many(start_response)
        environ[RIGHT] = right
        return self._app(environ, start_response)

    def _is_own_name(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        return match is not None and match[1].lower() in self._names

    def _may_have_origin(self, environ: WSGIEnvironment) -> bool:
        """Whether there is no Origin, or the one of our own page where it may have one."""
        if "HTTP_ORIGIN" not in environ:
            return True
        own = f"http://{environ['HTTP_HOST']}".lower()
        return self._is_page_socket(environ) and environ["HTTP_ORIGIN"].lower() == own

    def _is_page_socket(self, environ: WSGIEnvironment) -> bool:
        return (
            environ.get("PATH_INFO") in self._page_paths
            and environ.get("REQUEST_METHOD") == "GET"
            and environ.get("HTTP_UPGRADE", "").lower() == "websocket"
        )

    def _right(self, environ: WSGIEnvironment, caller: Caller) -> Right | None:
        """Return the right that a request shows; None for a wrong token."""
        if self._token is None:
            return Right.NONE
        scheme, _, given = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        shown = "HTTP_AUTHORIZATION" in environ
        if not shown and self._is_page_socket(environ):
            scheme, given = "bearer", _token_among(environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL", ""))
            shown = bool(given)
        if not shown:
            return caller.right or Right.NONE
        # WSGI hands header bytes over as latin-1
        given_bytes = given.strip().encode("latin-1", "replace")
        right = hmac.compare_digest(given_bytes, self._token) and scheme.lower() == "bearer"
        return Right.CHANGE if right else None

    def _needs(self, environ: WSGIEnvironment) -> Right:
        if self._needed is None:
            return Right.LOOK
        return self._needed(environ.get("REQUEST_METHOD", ""), environ.get("PATH_INFO", ""))

    def _refuse(
        self,
        environ: WSGIEnvironment,
        start_response: StartResponse,
        caller: Caller,
        right: Right | None,
    ) -> list[bytes]:
        """Refuse who has shown a wrong token, or has not shown the right that it takes."""
        if not self._failed.take(self._clock()):
            return _too_many(start_response)
        if right is not None and caller.right is not None:
            return refuse(
                start_response, "403 Forbidden", "not_permitted", refusal(self._needs(environ))
            )
        _log.warning(
            "request without a valid token refused",
            remote=caller.name,
            token="wrong" if "HTTP_AUTHORIZATION" in environ else "missing",
            remedy="give the client the text of api.token in daemon.state_dir",
        )
        return refuse(
            start_response,
            "401 Unauthorized",
            "unauthorized",
            "this request needs 'Authorization: Bearer TOKEN' with the token of this daemon",
            [("WWW-Authenticate", 'Bearer realm="shadowmesh"')],
        )


def _caller(environ: WSGIEnvironment) -> Caller:
    """Return who asks; a server that is not ours tells the address at most."""
    found: Caller | None = environ.get(CALLER)
    if found is not None:
        return found
    return of_address(environ.get("REMOTE_ADDR", "?"), environ.get("REMOTE_PORT", "?"))


def _token_among(protocols: str) -> str:
    """Return the token that a list of subprotocols offers; empty without one."""
    for protocol in protocols.split(","):
        if protocol.strip().startswith(BEARER_PREFIX):
            return protocol.strip().removeprefix(BEARER_PREFIX)
    return ""


def _too_many(start_response: StartResponse) -> list[bytes]:
    return refuse(
        start_response,
        "429 Too Many Requests",
        "rate_limited",
        "too many requests: wait a second and ask less often",
        [("Retry-After", "1")],
    )
