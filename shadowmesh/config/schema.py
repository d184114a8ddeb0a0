"""The tables of all keys: default, check, meaning, and whether a reload applies a change.

Owns: names, defaults and ranges, and which YAML types a key takes; conf/daemon.yaml documents the
same and a test compares them. `KEYS` are those of the sections, `PEER_KEYS` those of an item of
`peers:`. Does not know: where values come from (`loader`), how a value is parsed (`values`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shadowmesh.base.constants import (
    DEFAULT_API_PORT,
    DEFAULT_METRICS_PORT,
    DEFAULT_PEER_PORT,
    DEFAULT_PID_FILE,
    DEFAULT_TLS_CERT,
    DEFAULT_TLS_KEY,
    MAX_MACS,
    MAX_MTU,
    MAX_QUEUES,
    MIN_MACS,
    MIN_MTU,
)
from shadowmesh.config import values, yamlfile
from shadowmesh.config.model import (
    DaemonSection,
    EncryptionSection,
    MeshSection,
    MonitoringSection,
    NatSection,
    NetworkSection,
    PeerSection,
    WebsocketSection,
)
from shadowmesh.config.yamlfile import Kind, Raw
from shadowmesh.keys import identity

ENVIRONMENT_PREFIX = "SHADOWMESH_"

#: the kinds of raw value that a key takes, besides the text of a flag or variable
_TEXT: frozenset[Kind] = frozenset({"str"})
_TEXT_OR_EMPTY: frozenset[Kind] = frozenset({"str", "null"})
_INTEGER: frozenset[Kind] = frozenset({"int"})
_TEXT_OR_INTEGER: frozenset[Kind] = frozenset({"str", "int"})
_BOOLEAN: frozenset[Kind] = frozenset({"bool"})
#: a bare number is a duration without a unit, and 64 digits without a letter are a key: both get
#: their own parser's message
_DURATION: frozenset[Kind] = frozenset({"str", "int", "float"})
_HEX: frozenset[Kind] = frozenset({"str", "null", "int", "float"})
_TEXT_OR_LIST: frozenset[Kind] = frozenset({"str", "null", "list"})
#: YAML takes some MAC addresses for numbers to the base of 60
_MAC: frozenset[Kind] = frozenset({"str", "int", "float"})
_MAC_OR_LIST: frozenset[Kind] = frozenset({"str", "int", "float", "list"})


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the configuration.

    Attributes:
        name: `section.key`, also the name of the flag.
        default: as it would be written; None when it depends on the machine or other keys.
        kinds: the YAML types that are accepted.
        parse: text to value, ValueError when it is wrong.
        meaning: one line for `--help`.
        reload: a SIGHUP applies a change; otherwise it needs a restart.
        secret: never shown; not accepted as a flag, because every user can read argv.
        items: the YAML types that an item of a list may have.
    """

    name: str
    default: str | None
    kinds: frozenset[Kind]
    parse: Callable[[str], object]
    meaning: str
    reload: bool = False
    secret: bool = False
    items: frozenset[Kind] = _TEXT

    @property
    def section(self) -> str:
        return self.name.partition(".")[0]

    @property
    def attribute(self) -> str:
        return self.name.partition(".")[2]

    @property
    def environment(self) -> str:
        """The environment variable, like `SHADOWMESH_NETWORK_LOCAL_IP`."""
        return ENVIRONMENT_PREFIX + self.name.replace(".", "_").upper()

    def checked(self, raw: Raw) -> object:
        """Return the value; ValueError when its type or content is wrong."""
        if raw.kind == "text" or raw.kind in self.kinds - {"list"}:
            return self.parse(raw.text)
        if raw.kind == "list" and "list" in self.kinds:
            if any(item.kind not in self.items or "," in item.text for item in raw.items):
                raise ValueError("every item of the list must be text")
            return self.parse(",".join(item.text for item in raw.items))
        if "str" in self.kinds:
            wanted = "text or a list of texts" if "list" in self.kinds else "text"
        else:
            wanted = "a whole number" if "int" in self.kinds else "true or false"
        hint = ""
        if "str" in self.kinds and raw.kind in {"int", "float", "bool"}:
            hint = "; put it in quotes"  # YAML takes no, on, 12 and the like for other things
        elif raw.kind == "str":
            hint = ", which is text; write it without quotes" if self._takes(raw.text) else ""
        raise ValueError(f"must be {wanted}, got {yamlfile.shown(raw)}{hint}")

    def _takes(self, text: str) -> bool:
        try:
            self.parse(text)
        except ValueError:
            return False
        return True


SECTIONS: dict[str, type] = {
    "daemon": DaemonSection,
    "network": NetworkSection,
    "encryption": EncryptionSection,
    "peer": PeerSection,
    "mesh": MeshSection,
    "nat": NatSection,
    "websocket": WebsocketSection,
    "monitoring": MonitoringSection,
}

_PORT = values.whole(0, 65535)

_KEYS = (
    Key(
        "daemon.listen_address", f"127.0.0.1:{DEFAULT_API_PORT}", _TEXT, values.listen,
        "host:port of the control API",
    ),
    Key(
        "daemon.api_socket", None, _TEXT_OR_EMPTY, values.optional_socket_path,
        'Unix socket of the control API; "" for none',
    ),
    Key(
        "daemon.log_level", "info", _TEXT, values.one_of("debug", "info", "warn", "error"),
        "debug, info, warn or error", reload=True,
    ),
    Key(
        "daemon.log_format", "text", _TEXT, values.one_of("text", "json"),
        "text or json", reload=True,
    ),
    Key(
        "daemon.pid_file", DEFAULT_PID_FILE, _TEXT_OR_EMPTY, values.optional_file_path,
        'file for the process id; "" for none',
    ),
    Key(
        "daemon.state_dir", None, _TEXT, values.file_path,
        "directory of the identity key and the API token",
    ),
    Key(
        "network.tap_device", "tap0", _TEXT, values.optional_interface_name,
        'name of the TAP device, at most 15 bytes; "" for none',
    ),
    Key(
        "network.local_ip", "10.0.0.1/24", _TEXT_OR_LIST, values.interface_addresses,
        'address/prefix of the TAP, several separated by commas; "" for none',
    ),
    Key(
        "network.mtu", "1500", _INTEGER, values.whole(MIN_MTU, MAX_MTU),
        f"MTU of the TAP, {MIN_MTU} to {MAX_MTU}",
    ),
    Key(
        "network.persist_tap", "false", _BOOLEAN, values.boolean,
        "keep the device over disconnect and restart",
    ),
    Key(
        "network.offload", "true", _BOOLEAN, values.boolean,
        "segmentation and checksum offload on the TAP",
    ),
    Key(
        "network.queues", "auto", _TEXT_OR_INTEGER, values.whole_or_auto(1, MAX_QUEUES),
        f"queues of the TAP, each with a thread: auto or 1 to {MAX_QUEUES}",
    ),
    Key(
        "network.realtime", "false", _BOOLEAN, values.boolean,
        "run the threads that carry frames before all other programs",
    ),
    Key(
        "encryption.key", None, _HEX, values.secret_key,
        "pre-shared key, 64 hex digits; in the file or the environment only",
        reload=True, secret=True,
    ),
    Key(
        "encryption.cipher", "auto", _TEXT,
        values.one_of("auto", "chacha20-poly1305", "aegis-256"),
        "auto, chacha20-poly1305 or aegis-256",
    ),
    Key(
        "encryption.rotation_interval", "120s", _DURATION, values.duration(10, 120),
        "time between rekeys, 10s to 120s", reload=True,
    ),
    Key(
        "peer.address", "", _TEXT_OR_EMPTY, values.optional_peer,
        'host:port to dial, port 9001 when left out; "" to wait for the peer', reload=True,
    ),
    Key(
        "peer.public_key", "", _TEXT_OR_EMPTY, values.public_key,
        "Ed25519 key that the peer must have, base64", reload=True,
    ),
    Key(
        "peer.auto_connect", None, _BOOLEAN, values.boolean,
        "dial at start and redial for ever", reload=True,
    ),
    Key(
        "mesh.max_macs", "8192", _INTEGER, values.whole(MIN_MACS, MAX_MACS),
        f"entries of the MAC table, {MIN_MACS} to {MAX_MACS}",
    ),
    Key(
        "mesh.broadcast", "true", _BOOLEAN, values.boolean,
        "send broadcast, multicast and unknown unicast to every peer",
    ),
    Key(
        "mesh.announce", "", _TEXT_OR_LIST, values.announced,
        "host:port by which members of a network may dial this one, separated by commas",
    ),
    Key(
        "nat.enabled", "true", _BOOLEAN, values.boolean,
        "look for a direct UDP path beside WSS", reload=True,
    ),
    Key(
        "nat.stun_server", "stun.l.google.com:19302", _TEXT_OR_LIST, values.remotes,
        "host:port of STUN servers, separated by commas", reload=True,
    ),
    Key(
        "nat.detection_timeout", "5s", _DURATION, values.duration(0.5, 60),
        "time for the STUN servers to answer, 500ms to 60s", reload=True,
    ),
    Key(
        "nat.hole_punch_timeout", "500ms", _DURATION, values.duration(0.1, 10),
        "length of one round of hole punching, 100ms to 10s", reload=True,
    ),
    Key(
        "nat.udp_port", str(DEFAULT_PEER_PORT), _INTEGER, _PORT,
        "UDP port of the data path; 0 for any", reload=True,
    ),
    Key(
        "websocket.listen_address", f"[::]:{DEFAULT_PEER_PORT}", _TEXT_OR_EMPTY,
        values.optional_listen, 'host:port where peers arrive; "" for not at all',
    ),
    Key(
        "websocket.path", "/shadowmesh", _TEXT, values.url_path,
        "path of the upgrade request",
    ),
    Key(
        "websocket.tls_cert", DEFAULT_TLS_CERT, _TEXT, values.file_path,
        "certificate, made on first start if missing",
    ),
    Key(
        "websocket.tls_key", DEFAULT_TLS_KEY, _TEXT, values.file_path,
        "key of the certificate, made on first start if missing",
    ),
    Key(
        "websocket.require_direct_tls", "false", _BOOLEAN, values.boolean,
        "refuse a path on which a proxy ends the TLS",
    ),
    Key(
        "websocket.keepalive_interval", "30s", _DURATION, values.duration(0.5, 120),
        "silence before a keepalive, 500ms to 120s", reload=True,
    ),
    Key(
        "websocket.read_timeout", "60s", _DURATION, values.duration(1, 600),
        "silence after which the link is dead, 1s to 600s", reload=True,
    ),
    Key(
        "websocket.write_timeout", "60s", _DURATION, values.duration(1, 600),
        "a write blocked this long ends the link, 1s to 600s", reload=True,
    ),
    Key(
        "monitoring.metrics_enabled", "true", _BOOLEAN, values.boolean,
        "serve Prometheus metrics",
    ),
    Key(
        "monitoring.prometheus_port", str(DEFAULT_METRICS_PORT), _INTEGER, _PORT,
        "port of the metrics on 127.0.0.1; 0 for none",
    ),
)  # fmt: skip

KEYS: dict[str, Key] = {key.name: key for key in _KEYS}

#: the section that is a list; it stands in the file only, and a reload applies every change
PEERS = "peers"

_PEER_KEYS = (
    Key(
        "peers.name", None, _TEXT, values.peer_name,
        "what commands call the peer, a DNS label", reload=True,
    ),
    Key(
        "peers.public_key", None, _TEXT, identity.parse_public_key,
        "Ed25519 key that the peer must have, base64", reload=True,
    ),
    Key(
        "peers.address", "", _TEXT_OR_EMPTY, values.optional_peer,
        'host:port to dial, port 9001 when left out; "" to wait for the peer', reload=True,
    ),
    Key(
        "peers.auto_connect", None, _BOOLEAN, values.boolean,
        "dial at start and redial for ever", reload=True,
    ),
    Key(
        "peers.tunnel_ips", "", _TEXT_OR_LIST, values.tunnel_addresses,
        "addresses of the peer in the tunnel", reload=True,
    ),
    Key(
        "peers.allowed_macs", "any", _MAC_OR_LIST, values.allowed_macs,
        "any, own or a list: source addresses that its frames may have", reload=True, items=_MAC,
    ),
)  # fmt: skip

#: by the names that stand in the file
PEER_KEYS: dict[str, Key] = {key.attribute: key for key in _PEER_KEYS}
