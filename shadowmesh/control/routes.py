"""The table of the control API's routes: what each takes and what it may answer.

Owns: paths, methods, the right that each takes, the schemas (as `schema` understands them) of
bodies, query parameters and of what varies in a path. The routes of `app` and the OpenAPI document
of `openapi` are both made from this table, so that they cannot differ. Does not know: Flask, what a
route does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from shadowmesh.base.constants import MAX_EVENTS
from shadowmesh.base.errors import (
    AlreadyConnected,
    AlreadyConnecting,
    AlreadyInNetwork,
    CaptureRunning,
    ConfigurationWrong,
    ConnectTimeout,
    ControlError,
    DaemonStopping,
    DeviceUnavailable,
    FileNotSent,
    FileRefused,
    IssuerRefused,
    NoSuchPeer,
    NotConfigured,
    NotConnected,
    NotInNetwork,
    PeerRefused,
    PeerUnreachable,
)
from shadowmesh.config.values import MAX_ANNOUNCED
from shadowmesh.control.custody_routes import CUSTODY_ROUTES
from shadowmesh.control.rights import Right
from shadowmesh.control.rotation_routes import ROTATION_ROUTES
from shadowmesh.control.route import Refusal, Route
from shadowmesh.control.schema import Schema, Value
from shadowmesh.insight.pcapng import MAX_SNAP_BYTES

#: the longest host:port: a name of 253 characters with a final dot, and a port
MAX_PEER_CHARS: Final = 260
#: of a DNS label
MAX_NAME_CHARS: Final = 63
#: the longest IPv6 address with an IPv4 tail; a zone has no place in it
MAX_TARGET_CHARS: Final = 45
#: of one request: it takes up to 2 s for each
MAX_PINGS: Final = 10
#: of the text of an invitation; one with three relays of the longest names has less
MAX_TOKEN_CHARS: Final = 4096
#: of an IPv6 network
MAX_SUBNET_CHARS: Final = 43
MAX_LABELS: Final = 32
MAX_LABEL_CHARS: Final = 64
#: a tunnel has IPv4, IPv6 or both
MAX_FAMILIES: Final = 2
MAX_USES: Final = 1000
#: of an invitation: a minute, an hour, a year
MIN_EXPIRES_S: Final = 60
EXPIRES_S: Final = 3600
MAX_EXPIRES_S: Final = 365 * 24 * 3600
#: a day, in milliseconds
MAX_CAPTURE_MS: Final = 24 * 3600 * 1000
#: integers that JSON's readers agree about
MAX_SAFE_INTEGER: Final = 2**53 - 1


BAD_REQUEST: Final = Refusal(400, "bad_request", "a parameter is unknown or wrong")
UNAUTHORIZED: Final = Refusal(401, "unauthorized", "the token is missing or wrong")
FORBIDDEN_HOST: Final = Refusal(403, "forbidden_host", "the Host header names somebody else")
NOT_PERMITTED: Final = Refusal(
    403, "not_permitted", "over the Unix socket: the caller is in no group that has the right"
)
FORBIDDEN_REMOTE: Final = Refusal(
    403, "forbidden_remote", "frames in plaintext are for callers on this machine only"
)
FORBIDDEN_ORIGIN: Final = Refusal(403, "forbidden_origin", "the request comes from a web page")
METRICS_OFF: Final = Refusal(404, "not_found", "monitoring.metrics_enabled is false")
TOO_LARGE: Final = Refusal(413, "too_large", "the body is too large")
WRONG_TYPE: Final = Refusal(415, "unsupported_media_type", "the body is not application/json")
UPGRADE_REQUIRED: Final = Refusal(426, "upgrade_required", "this route speaks WebSocket only")
RATE_LIMITED: Final = Refusal(429, "rate_limited", "too many requests; see Retry-After")
TOO_MANY_CONNECTIONS: Final = Refusal(
    503, "too_many_connections", "too many requests are being answered; see Retry-After"
)
INTERNAL: Final = Refusal(500, "internal", "a bug of the daemon; its log has more")
STOPPING: Final = Refusal(503, DaemonStopping.code, "the daemon was told to end meanwhile")
TOO_MANY_LISTENERS: Final = Refusal(503, "too_many_listeners", "all places are taken")

_ERROR_TEXTS: Final[Mapping[type[ControlError], str]] = {
    AlreadyConnected: "there is a session",
    AlreadyConnecting: "an attempt is running",
    NotConnected: "there is no session, or it was ended while it was waited for",
    NoSuchPeer: "no peer has that name",
    NotInNetwork: "this machine is in no network",
    AlreadyInNetwork: "this machine is in a network already",
    IssuerRefused: "the issuer of the network will not do it, or this machine is not the issuer",
    FileNotSent: "a file is not here, or not all of it; `POST /files`",
    FileRefused: "what a file holds is not what it should be",
    PeerUnreachable: "the peer does not answer",
    PeerRefused: "the peer answers and does not want us",
    NotConfigured: "no key or no peer is configured",
    DeviceUnavailable: "the TAP device cannot be made, or there is to be none",
    ConnectTimeout: "no outcome in time",
    CaptureRunning: "a capture is running; one at a time",
    ConfigurationWrong: "the file is invalid, and the daemon goes on as before",
}

_PEER: Final = Value(
    "peer",
    {"type": ["string", "null"], "format": "host:port", "maxLength": MAX_PEER_CHARS},
    "Whom to dial, `host:port` with IPv6 in brackets, port 9001 when left out; missing or null:"
    " the configured peer.",
    example="peer.example:9001",
)

_NAME: Final = Value(
    "name",
    {"type": ["string", "null"], "maxLength": MAX_NAME_CHARS},
    "Name of one of `peers`; missing or null: all of them, and of a pair its one.",
    example="nas",
)

_MEMBER: Final = {"type": ["string", "null"], "maxLength": MAX_NAME_CHARS}


def _texts(longest: int, most: int) -> Schema:
    return {"type": "array", "items": {"type": "string", "maxLength": longest}, "maxItems": most}


ROUTES: Final = (
    Route(
        "GET", "/", "dashboard", Right.NONE, "The dashboard", "text/html",
        "One page that holds no data; it takes the token from the fragment of its URL and reads "
        "`/events` with it. `shadowmesh dashboard` prints the link.",
    ),
    Route(
        "POST", "/connect", "connect", Right.CHANGE, "Connect and wait for the outcome", "Snapshot",
        "Returns once the tunnel is up or the attempt has failed. With several peers and no name all "
        "that have an address are dialled, and the first session is the outcome; those that have to "
        "come by themselves are let in again.",
        body=(_PEER, _NAME),
        errors=(AlreadyConnected, AlreadyConnecting, NotConnected, PeerUnreachable, PeerRefused,
                NotConfigured, DeviceUnavailable, ConnectTimeout, NoSuchPeer),
    ),
    Route(
        "POST", "/disconnect", "disconnect", Right.CHANGE, "End the session and take the TAP device down",
        "Snapshot", "Also gives up connecting, and leaves the state error. With a name that is done to "
        "one of several peers, and the device stays.",
        body=(_NAME,), errors=(NotConnected, NoSuchPeer),
    ),
    Route(
        "POST", "/reload", "reload", Right.CHANGE, "Read the configuration again", "Reloaded",
        "As SIGHUP does. A configuration that is invalid changes nothing, and the answer says what "
        "is wrong with it.",
        body=(), errors=(ConfigurationWrong,),
    ),
    Route(
        "POST", "/ping", "ping", Right.LOOK, "Measure round trips to the peer", "Pings",
        "Sends probes one after the other over the path that carries the frames. One without an "
        "answer within 2 s has the round trip null.",
        body=(Value("count", {"type": "integer", "minimum": 1, "maximum": MAX_PINGS},
                    "how many", default=1),
              Value("name", _NAME.schema, "Name of one of `peers`; needed when there are several.",
                    example="nas")),
        errors=(NotConnected, NoSuchPeer),
    ),
    Route(
        "GET", "/configuration", "configuration", Right.LOOK, "What the daemon goes by", "Configuration",
        "Every key with its value and where that comes from; a secret is `***`. A key that was changed and "
        "waits for a restart has the value that is in force.",
    ),
    Route("GET", "/status", "status", Right.LOOK, "What the daemon knows now", "Snapshot"),
    Route(
        "GET", "/peers", "peers", Right.LOOK, "How each peer is", "Peers",
        "Sorted as in the configuration; of a pair a list of one.",
    ),
    Route(
        "GET", "/peers/{name}", "peer", Right.LOOK, "All about one peer", "PeerAnswer",
        "Beside what `/peers` tells, every way to it that is known and the addresses behind it.",
        within=(Value("name", {"type": "string", "maxLength": MAX_NAME_CHARS},
                      "Name of the peer; of a pair it is `peer`.", example="nas"),),
        errors=(NoSuchPeer,),
    ),
    Route(
        "DELETE", "/peers/{name}", "remove_peer", Right.CHANGE, "Put a member out of the network", "Removed",
        "Revokes every certificate of its key: its sessions end everywhere, and it does not come back "
        "without a new invitation.",
        within=(Value("name", {"type": "string", "maxLength": MAX_NAME_CHARS}, "Name of the member.",
                      example="nas"),),
        errors=(NotInNetwork, NoSuchPeer, IssuerRefused),
    ),
    Route(
        "POST", "/network", "create_network", Right.CHANGE, "Make a network, with this machine as its issuer",
        "Founded",
        "The recovery key is told this once. The daemon then begins anew inside of its process: for some "
        "seconds nobody answers here.",
        body=(
            Value("name", {"type": "string", "maxLength": MAX_NAME_CHARS}, "Name of the network.",
                  example="home", required=True),
            Value("own_name", _MEMBER, "Name of this machine in it; missing or null: its host name.",
                  example="server"),
            Value("subnets", _texts(MAX_SUBNET_CHARS, MAX_FAMILIES),
                  "Networks of the tunnel; missing or empty: they are chosen.", default=(),
                  example=["10.77.0.0/24"]),
            Value("address", {"type": ["string", "null"], "format": "host:port",
                              "maxLength": MAX_PEER_CHARS},
                  "Where others reach this machine; missing or null: nowhere.",
                  example="vpn.example.com:443"),
        ),
        errors=(AlreadyInNetwork, AlreadyConnecting, IssuerRefused, ConfigurationWrong),
    ),
    Route(
        "GET", "/network", "network", Right.LOOK, "The network that this machine is in", "NetworkAnswer",
        "`network` is null when it is in none.",
    ),
    Route(
        "GET", "/relays", "relays", Right.LOOK, "The other relays of the network", "Relays",
        "Which one is home, by which others find this machine, and why.",
        errors=(NotInNetwork,),
    ),
    Route(
        "POST", "/invitations", "invite", Right.CHANGE, "Make an invitation to the network", "Invited",
        "Its text is a secret, and told this once.",
        body=(
            Value("name", _MEMBER, "Name of the member that it makes; missing or null: the joiner's.",
                  example="laptop"),
            Value("expires_s", {"type": "integer", "minimum": MIN_EXPIRES_S, "maximum": MAX_EXPIRES_S},
                  "How many seconds it is valid.", default=EXPIRES_S),
            Value("uses", {"type": "integer", "minimum": 1, "maximum": MAX_USES},
                  "How many machines it lets in.", default=1),
            Value("roles", _texts(MAX_LABEL_CHARS, MAX_LABELS), "Roles of the member.", default=(),
                  example=["relay"]),
            Value("tags", _texts(MAX_LABEL_CHARS, MAX_LABELS), "Tags of the member.", default=(),
                  example=["factory"]),
            Value("addresses", _texts(MAX_TARGET_CHARS, MAX_FAMILIES),
                  "Of the member in the tunnel; missing or empty: they are chosen.", default=(),
                  example=["10.77.0.9"]),
        ),
        errors=(NotInNetwork, IssuerRefused),
    ),
    Route(
        "GET", "/invitations", "invitations", Right.LOOK, "The invitations that were made", "Invitations",
        "Without their texts, which are kept nowhere.", errors=(NotInNetwork, IssuerRefused),
    ),
    Route(
        "DELETE", "/invitations", "cancel_invitations", Right.CHANGE, "Cancel all invitations", "Cancelled",
        errors=(NotInNetwork, IssuerRefused),
    ),
    Route(
        "DELETE", "/invitations/{id}", "cancel_invitation", Right.CHANGE, "Cancel one invitation",
        "Cancelled", "One that is not open any more, or that there never was, is none: `cancelled` is 0.",
        within=(Value("id", {"type": "string", "format": "invitation-id", "maxLength": 16},
                      "Of the invitation.", example="0123456789abcdef"),),
        errors=(NotInNetwork, IssuerRefused),
    ),
    Route(
        "POST", "/join", "join", Right.CHANGE, "Take an invitation, or find out what it says", "Admission",
        "The issuer is asked either way, and the invitation is this machine's from then on: asked again it "
        "answers the same. Once it is taken the daemon begins anew inside of its process: for some seconds "
        "nobody answers here.",
        body=(
            Value("token", {"type": "string", "maxLength": MAX_TOKEN_CHARS},
                  "Text of the invitation: a secret.", required=True),
            Value("name", _MEMBER, "Name that this machine would like; missing or null: that of the "
                  "invitation, or its host name.", example="laptop"),
            Value("accept", {"type": "boolean"}, "Take it; else nothing changes here.", default=False),
            Value("announce", _texts(MAX_PEER_CHARS, MAX_ANNOUNCED),
                  "Where other members may dial this machine, `host:port`; one that is to be a relay needs "
                  "one.", default=(), example=["nas.example:9001"]),
        ),
        errors=(AlreadyInNetwork, AlreadyConnecting, PeerUnreachable, PeerRefused, ConnectTimeout,
                IssuerRefused, ConfigurationWrong),
    ),
    Route(
        "POST", "/leave", "leave", Right.CHANGE, "Leave the network", "NetworkAnswer",
        "Its files are removed. The daemon then begins anew inside of its process: for some seconds nobody "
        "answers here.",
        body=(), errors=(NotInNetwork, AlreadyConnecting, IssuerRefused),
    ),
    Route(
        "GET", "/fdb", "fdb", Right.LOOK, "Who is behind which peer", "Table",
        "The addresses that the switch has learned, and those of the peers' own devices. Of a pair "
        "none is needed, as every frame goes to the one peer.",
    ),
    Route(
        "GET", "/explain", "explain", Right.LOOK, "What would happen to a frame now, and why", "Explanation",
        "The chain of decisions between the host and the far TAP device: device, target, "
        "connection, session, path, MTU, queue, drops. Nothing is sent. With several peers the chain "
        "is that of the peer whom the target is behind.",
        query=(
            Value("target", {"type": "string", "format": "mac-or-ip",
                             "maxLength": MAX_TARGET_CHARS},
                  "MAC or IP address that the frame is for; missing: any.",
                  example="10.0.0.2"),
            Value("peer", {"type": "string", "maxLength": MAX_NAME_CHARS},
                  "Name of the peer that the frame is for; missing: whom the target is behind.",
                  example="nas"),
        ),
        errors=(NoSuchPeer,),
    ),
    Route(
        "GET", "/health", "health", Right.NONE, "All health checks", "Health",
        "200 unless a check of severity error fails. Without the token the texts are left out.",
        also={503: "a check of severity error fails"},
    ),
    Route(
        "GET", "/health/live", "live", Right.NONE, "Liveness: the daemon answers", "Liveness",
        "Always 200: that it comes says that the event loop runs. A supervisor that gets no "
        "answer restarts the daemon.",
    ),
    Route(
        "GET", "/health/ready", "ready", Right.NONE, "Readiness: the tunnel does what is asked of it",
        "Readiness",
        "200 when the TAP device is up or can be made, a key is configured, and the peer is "
        "connected if a connection is wanted: somebody dials, or only the peer can and it is let in. "
        "A daemon that nobody has asked, or whose operator has disconnected, "
        "is ready. Otherwise 503 with the checks that fail. Restarting the daemon would not help.",
        also={503: "not ready"},
    ),
    Route(
        "GET", "/events", "events", Right.LOOK, "WebSocket: snapshots and events as they come",
        "websocket",
        "Subprotocol `shadowmesh.events.v1`. Browsers, which cannot set Authorization here, "
        "offer the token as a second subprotocol `bearer.TOKEN`; only this route takes an "
        "Origin, that of the daemon's own dashboard. The server sends text messages of the "
        "schema FeedMessage: at the start a snapshot and the last events, then a snapshot each "
        "second and events as they come. It expects nothing but control frames.",
        errors=(UPGRADE_REQUIRED, TOO_MANY_LISTENERS),
    ),
    Route(
        "GET", "/events/recent", "recent_events", Right.LOOK, "The last events, the oldest first", "Events",
        "The flight recorder keeps 1,000 events in memory.",
        query=(
            Value("limit", {"type": "integer", "minimum": 1, "maximum": MAX_EVENTS},
                  "At most so many, the newest.", default=100),
            Value("after", {"type": "integer", "minimum": 0, "maximum": MAX_SAFE_INTEGER},
                  "Only events with a greater number.", default=0),
        ),
    ),
    Route(
        "GET", "/history", "history", Right.LOOK, "What the tunnel carried in the last hour", "History",
        "Throughput, round trip and drops in two resolutions: the last 5 minutes by the second, the "
        "last hour by 15 seconds. In memory, since the daemon started; null where nobody looked.",
    ),
    Route(
        "GET", "/capture", "capture", Right.CHANGE, "The frames that cross the tunnel, as pcapng",
        "application/x-pcapng",
        "Goes on until `count` or `duration_ms` is reached, the client closes its sending half or "
        "the connection, or the daemon stops; the last block, of statistics, says which, and it "
        "alone has an end time. Frames are those between the TAP device and the tunnel, in both "
        "directions (`epb_flags`), with the offloads of the host. What a bounded buffer has no "
        "room for is missing here, not in the tunnel, and counted in the statistics that come "
        "each second. A client that takes nothing for 20 s is dropped. Loopback only.",
        query=(
            Value("snaplen", {"type": "integer", "minimum": 1, "maximum": MAX_SNAP_BYTES},
                  "How many bytes of each frame are kept.", default=MAX_SNAP_BYTES),
            Value("count", {"type": "integer", "minimum": 0, "maximum": MAX_SAFE_INTEGER},
                  "End after so many frames; 0: do not.", default=0),
            Value("duration_ms", {"type": "integer", "minimum": 0, "maximum": MAX_CAPTURE_MS},
                  "End after this time; 0: do not.", default=0),
            Value("peer", {"type": "string", "maxLength": MAX_NAME_CHARS},
                  "Only frames from and to this one of several peers; missing: of all.",
                  example="nas"),
        ),
        errors=(CaptureRunning, DeviceUnavailable, FORBIDDEN_REMOTE, NoSuchPeer),
    ),
    Route(
        "GET", "/metrics", "metrics", Right.LOOK, "Metrics in the Prometheus text format", "text/plain",
        "The same as on `monitoring.prometheus_port`, where no token is needed.",
        errors=(METRICS_OFF,),
    ),
    Route("GET", "/openapi.json", "openapi", Right.LOOK, "This document", "object"),
    *CUSTODY_ROUTES,
    *ROTATION_ROUTES,
)  # fmt: skip

#: of each method and path
NEEDED: Final = {(route.method, route.path): route.right for route in ROUTES}
_VARYING: Final = [
    (route.method, re.compile(re.sub(r"{\w+}", "[^/]+", route.path)), route.right)
    for route in ROUTES
    if route.within
]


def right_for(method: str, path: str) -> Right:
    """Return the right that a request needs; one that fits no route needs `Right.LOOK`."""
    method = "GET" if method == "HEAD" else method
    found = NEEDED.get((method, path))
    if found is not None:
        return found
    for one, pattern, right in _VARYING:
        if one == method and pattern.fullmatch(path):
            return right
    return Right.LOOK


def refusals(route: Route) -> list[Refusal]:
    """Return every error that a request for `route` may be answered with."""
    found = [BAD_REQUEST, FORBIDDEN_HOST, FORBIDDEN_ORIGIN, RATE_LIMITED, INTERNAL]
    found += [TOO_MANY_CONNECTIONS, STOPPING]
    if route.right:
        found.append(NOT_PERMITTED)
    # a token that is given must be right on the open routes too
    found.append(UNAUTHORIZED)
    if route.body is not None:
        found += [TOO_LARGE, WRONG_TYPE]
    for error in route.errors:
        if isinstance(error, Refusal):
            found.append(error)
        else:
            found.append(Refusal(error.http_status, error.code, _ERROR_TEXTS[error]))
    return found
