"""The control API: HTTP routes over a `Control`.

Owns: what serves each route of the table in `routes`. Who may ask at all is decided before, in
`guard`; how requests are read and answers written is in `answers`. Does not know: gevent, links,
how the daemon does what it is asked.

A route that waits (POST /connect, the WebSocket of GET /events, GET /capture) blocks only its
caller: the server runs each request in a greenlet of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from shadowmesh.base.constants import MAX_API_BODY_BYTES
from shadowmesh.base.errors import ControlError
from shadowmesh.base.rate import TokenBucket
from shadowmesh.control import answers
from shadowmesh.control.answers import (
    error_answer,
    json_answer,
    read_object,
    read_query,
    refused,
    report,
    too_many,
)
from shadowmesh.control.callers import of_address
from shadowmesh.control.custody import Custodian, CustodyHandlers
from shadowmesh.control.guard import (
    CALLER,
    CONNECTION,
    RIGHT,
    UPGRADE,
    Guard,
)
from shadowmesh.control.rights import refusal
from shadowmesh.control.rotation import RotationHandlers, Rotator
from shadowmesh.control.route import Route
from shadowmesh.control.routes import (
    FORBIDDEN_REMOTE,
    METRICS_OFF,
    NOT_PERMITTED,
    ROUTES,
    TOO_MANY_LISTENERS,
    UPGRADE_REQUIRED,
    right_for,
)
from shadowmesh.control.schema import check_members
from shadowmesh.insight.form import SCHEMA

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from shadowmesh.config import HostPort, LoadedConfig
    from shadowmesh.control.callers import Caller
    from shadowmesh.insight.events import FlightRecorder
    from shadowmesh.insight.explain import Explanation
    from shadowmesh.insight.history import Report
    from shadowmesh.insight.network import (
        Admission,
        Founded,
        InvitationReport,
        Invited,
        NetworkReport,
        Relays,
    )
    from shadowmesh.insight.peers import OnePeer, Peers, Pong
    from shadowmesh.insight.status import Health, Reloaded, Snapshot
    from shadowmesh.insight.table import Entry

#: the path whose WebSocket the dashboard opens
FEED_PATH: Final = "/events"

#: elements of long lists, per second and at once: of 1,000 peers two answers a second, which take a
#: sixth of a processor from the hub; of fifty nobody will notice
LIST_RATE: Final = (2000.0, 10_000.0)
#: entries of the switch's table that cost as much as a peer
ENTRIES_OF_A_PEER: Final = 12

#: what browsers and desktops call a pcapng file
CAPTURE_TYPE: Final = "application/x-pcapng"


class Control(Custodian, Rotator, Protocol):
    """What the API asks of the daemon. Failures are `ControlError`s."""

    def connect(self, peer: str | None, name: str | None) -> Snapshot:
        """Connect and wait for the outcome.

        Args:
            peer: ``host:port``; None: the configured one.
            name: of the peer; None: all, or the only one.
        """
        ...

    def disconnect(self, name: str | None) -> Snapshot: ...

    def reload(self) -> Reloaded:
        """Read the configuration again; a wrong one changes nothing."""
        ...

    def configuration(self) -> LoadedConfig:
        """What is in force."""
        ...

    def ping(self, count: int, name: str | None) -> list[Pong]:
        """Measure round trips to a peer over the path that carries the frames."""
        ...

    def status(self) -> Snapshot: ...

    def peers(self) -> Peers:
        """How each peer is."""
        ...

    def peer(self, name: str) -> OnePeer:
        """All about one peer."""
        ...

    def table(self) -> Sequence[Entry]:
        """The addresses that the switch knows."""
        ...

    def health(self) -> Health: ...

    def explain(self, target: str | None, peer: str | None) -> Explanation:
        """Tell what would happen to a frame.

        Args:
            target: MAC or IP address that it is for; None: any.
            peer: name of the peer that it is for; None: whom the target is behind.
        """
        ...

    def history(self) -> Report:
        """What the tunnel carried in the last hour."""
        ...

    def relays(self) -> Relays:
        """The relays of the network, and which one is home."""
        ...

    def network(self) -> NetworkReport | None:
        """The network that this machine is in."""
        ...

    def create_network(
        self, name: str, own_name: str | None, subnets: Sequence[str], address: str | None
    ) -> Founded:
        """Make a network and be its issuer; the daemon begins anew after the answer.

        Args:
            own_name: of this machine in it; None: its host name.
            subnets: of the tunnel; empty: they are chosen.
            address: ``host:port`` at which others reach this machine; None: nowhere.
        """
        ...

    def invite(
        self,
        name: str | None,
        expires_s: int,
        uses: int,
        roles: Sequence[str],
        tags: Sequence[str],
        addresses: Sequence[str],
    ) -> Invited:
        """Make an invitation; name None: the joiner's, addresses empty: they are chosen."""
        ...

    def invitations(self) -> Sequence[InvitationReport]: ...

    def cancel_invitation(self, id: str | None) -> int:  # noqa: A002 (its name everywhere)
        """Cancel one, by its 16 hexadecimal digits, or all; return how many were open."""
        ...

    def join(
        self, token: str, name: str | None, accept: bool, announce: Sequence[str]
    ) -> Admission:
        """Find out what an invitation says; with accept take it, and begin anew after the answer.

        Args: announce: where other members may dial this machine, host:port.

        The text of the invitation is a secret: no error repeats a part of it.
        """
        ...

    def leave(self) -> None:
        """Leave the network; the daemon begins anew after the answer."""
        ...

    def remove_peer(self, name: str) -> Sequence[str]:
        """Put a member out of the network; return the names of those that are out."""
        ...


class Feed(Protocol):
    """Who serves the WebSockets of GET /events."""

    #: name of what is spoken there
    subprotocol: str

    def make_room(self, client: str) -> bool:
        """Whether one more of a client may listen; somebody else may have to leave for it."""
        ...

    def serve(self, sock: Any, file: Any, client: str) -> None:
        """Keep one listener until it leaves; sock and file are what the upgrade gave."""
        ...


class Captures(Protocol):
    """Who makes what GET /capture answers with."""

    def start(
        self,
        *,
        snap_bytes: int,
        count: int | None,
        duration_s: float | None,
        sock: Any,
        who: str,
        peer: str | None,
    ) -> Iterable[bytes]:
        """Start a capture for `who` at the other end of sock; it has close(), called at the end."""
        ...


def create_app(
    control: Control,
    token: str,
    listen: HostPort,
    metrics_registry: CollectorRegistry | None = None,
    *,
    recorder: FlightRecorder,
    feed: Feed,
    captures: Captures,
) -> Flask:
    """Return the WSGI application of the control API.

    Args:
        token: the bearer token; compared in constant time, never logged or sent.
        listen: where the server listens; Host may name it.
        metrics_registry: what GET /metrics tells; None: metrics are off, the route is a 404.
        recorder: what GET /events/recent tells.
        feed: who serves GET /events.
        captures: who serves GET /capture.
    """
    # No static folder: Flask would add a route for it.
    app = Flask("shadowmesh.api", static_folder=None, template_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_API_BODY_BYTES
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    handlers = _Handlers(control, metrics_registry, recorder, feed, captures)
    for route in ROUTES:
        view = _view(route, getattr(handlers, route.name))
        path = route.path.replace("{", "<").replace("}", ">")
        app.add_url_rule(path, route.name, view, methods=[route.method])
        if route.answer == "websocket":
            # To the framework a request for a WebSocket is not the same as one for a page.
            app.add_url_rule(
                route.path, f"{route.name}_websocket", view, methods=["GET"], websocket=True
            )
    app.before_request(answers.refuse_foreign_body)
    app.after_request(answers.add_headers)
    app.register_error_handler(ControlError, answers.control_error)
    app.register_error_handler(HTTPException, answers.http_error)
    app.register_error_handler(OSError, answers.system_error)
    app.register_error_handler(Exception, answers.internal_error)
    app.wsgi_app = Guard(  # type: ignore[method-assign]
        app.wsgi_app,
        listen,
        token=token,
        needed=right_for,
        page_paths=frozenset({FEED_PATH}),
    )
    return app


def _view(route: Route, handler: Callable[..., Response]) -> Callable[..., Response]:
    """Return the view of a route: what it takes is checked, and handed over by name.

    The guard has asked for the right by the path. What the framework takes for the same path, such
    as one with more slashes, is asked for it here.
    """

    def view(**within: str) -> Response:
        if request.environ[RIGHT] < route.right:
            return error_answer(403, NOT_PERMITTED.code, refusal(route.right))
        arguments = check_members(read_query(route), route.query)
        arguments |= check_members(within, route.within)
        if route.body is not None:
            arguments |= check_members(read_object(), route.body)
        return handler(**arguments)

    return view


class _Handlers(CustodyHandlers, RotationHandlers):
    """One method for each route, of the route's name."""

    def __init__(
        self,
        control: Control,
        metrics_registry: CollectorRegistry | None,
        recorder: FlightRecorder,
        feed: Feed,
        captures: Captures,
    ) -> None:
        self._control = control
        self._registry = metrics_registry
        self._recorder = recorder
        self._feed = feed
        self._captures = captures
        self._lists = TokenBucket(*LIST_RATE)

    def dashboard(self) -> Response:
        from shadowmesh.control import dashboard

        page = dashboard.load()
        response = Response(page.body, content_type="text/html; charset=utf-8")
        response.headers.extend(page.headers)
        return response

    def connect(self, peer: str | None, name: str | None) -> Response:
        return json_answer(self._control.connect(peer, name).to_dict())

    def disconnect(self, name: str | None) -> Response:
        return json_answer(self._control.disconnect(name).to_dict())

    def reload(self) -> Response:
        return json_answer(self._control.reload().to_dict())

    def configuration(self) -> Response:
        from shadowmesh.config import as_json, redacted

        loaded = self._control.configuration()
        answer = {"schema": SCHEMA, "pid": os.getpid(), **as_json(loaded)}
        return json_answer({**answer, "text": redacted(loaded)})

    def ping(self, count: int, name: str | None) -> Response:
        answers = [pong.to_dict() for pong in self._control.ping(count, name)]
        return json_answer({"schema": SCHEMA, "answers": answers})

    def status(self) -> Response:
        return json_answer(self._control.status().to_dict())

    def peers(self) -> Response:
        if not self._lists.take(time.monotonic()):
            return too_many()
        told = self._control.peers()
        self._lists.owe(len(told.peers))
        return json_answer(told.to_dict())

    def peer(self, name: str) -> Response:
        return json_answer(self._control.peer(name).to_dict())

    def fdb(self) -> Response:
        if not self._lists.take(time.monotonic()):
            return too_many()
        found = [entry.to_dict() for entry in self._control.table()]
        self._lists.owe(len(found) / ENTRIES_OF_A_PEER)
        return json_answer({"schema": SCHEMA, "entries": found})

    def remove_peer(self, name: str) -> Response:
        removed = self._control.remove_peer(name)
        return json_answer({"schema": SCHEMA, "removed": list(removed)})

    def relays(self) -> Response:
        return json_answer(self._control.relays().to_dict())

    def network(self) -> Response:
        found = self._control.network()
        told = None if found is None else found.to_dict()
        return json_answer({"schema": SCHEMA, "network": told})

    def create_network(
        self, name: str, own_name: str | None, subnets: Sequence[str], address: str | None
    ) -> Response:
        founded = self._control.create_network(name, own_name, subnets, address)
        return json_answer(founded.to_dict())

    def invite(
        self,
        name: str | None,
        expires_s: int,
        uses: int,
        roles: Sequence[str],
        tags: Sequence[str],
        addresses: Sequence[str],
    ) -> Response:
        invited = self._control.invite(name, expires_s, uses, roles, tags, addresses)
        return json_answer(invited.to_dict())

    def invitations(self) -> Response:
        if not self._lists.take(time.monotonic()):
            return too_many()
        found = [one.to_dict() for one in self._control.invitations()]
        self._lists.owe(len(found))
        return json_answer({"schema": SCHEMA, "invitations": found})

    def cancel_invitations(self) -> Response:
        return self.cancel_invitation(None)

    def cancel_invitation(self, id: str | None) -> Response:  # noqa: A002 (as in the path)
        cancelled = self._control.cancel_invitation(id)
        return json_answer({"schema": SCHEMA, "cancelled": cancelled})

    def join(self, token: str, name: str | None, accept: bool, announce: Sequence[str]) -> Response:
        return json_answer(self._control.join(token, name, accept, announce).to_dict())

    def leave(self) -> Response:
        self._control.leave()
        return json_answer({"schema": SCHEMA, "network": None})

    def health(self) -> Response:
        health = self._control.health()
        # Texts name addresses and files: only for who may look.
        answer = health.to_dict(details=bool(request.environ.get(RIGHT)))
        return report(answer, "unhealthy", [check.name for check in health.failing])

    def explain(self, target: str | None, peer: str | None) -> Response:
        return json_answer(self._control.explain(target, peer).to_dict())

    def history(self) -> Response:
        return json_answer(self._control.history().to_dict())

    def live(self) -> Response:
        return json_answer({"schema": SCHEMA, "status": "alive"})

    def ready(self) -> Response:
        names = [check.name for check in self._control.health().not_ready]
        answer = {
            "schema": SCHEMA,
            "status": "not_ready" if names else "ready",
            "failing": names,
        }
        return report(answer, "not_ready", names)

    def events(self) -> Response:
        upgrade = request.environ.get(UPGRADE)
        if upgrade is None:
            answer = refused(UPGRADE_REQUIRED)
            answer.headers.extend({"Upgrade": "websocket", "Sec-WebSocket-Version": "13"})
            return answer
        caller = _caller()
        if not self._feed.make_room(caller.client):
            return refused(TOO_MANY_LISTENERS)
        self._feed.serve(*upgrade(self._feed.subprotocol), caller.client)
        return Response()  # which the server does not send any more

    def recent_events(self, limit: int, after: int) -> Response:
        events = self._recorder.recent(limit, after=after)
        return json_answer({"schema": SCHEMA, "events": [event.to_dict() for event in events]})

    def capture(self, snaplen: int, count: int, duration_ms: int, peer: str | None) -> Response:
        caller = _caller()
        if not caller.local:
            return refused(FORBIDDEN_REMOTE)
        stream = self._captures.start(
            snap_bytes=snaplen,
            count=count or None,
            duration_s=duration_ms / 1000 if duration_ms else None,
            sock=request.environ.get(CONNECTION),
            who=caller.name,
            peer=peer,
        )
        # The server closes it with the answer, also when it sends none of it.
        return Response(stream, content_type=CAPTURE_TYPE)

    def metrics(self) -> Response:
        if self._registry is None:
            return refused(METRICS_OFF)
        # Not at the top: without metrics the library stays out of the daemon's memory.
        from shadowmesh.insight import metrics

        return Response(metrics.render(self._registry), content_type=metrics.CONTENT_TYPE)

    def openapi(self) -> Response:
        from shadowmesh.control import openapi

        return json_answer(openapi.document())


def _caller() -> Caller:
    return request.environ.get(CALLER) or of_address(request.remote_addr or "")
