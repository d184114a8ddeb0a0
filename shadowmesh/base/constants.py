"""Numbers of the protocol and of this implementation, each with its unit and source.

Owns: values that more than one module needs. Units stand in the names: _S seconds, _BYTES
(or a plain length of a message) bytes. Does not know: anything else; imports nothing of the
project. "protocol section N" is the protocol text of the project's documentation.
tests/test_constants.py holds the relations between them and compares the copies in C.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

# --- Files and addresses (interface.md, "Configuration") --------------------------------------

SYSTEM_CONFIG_FILE: Final = "/etc/shadowmesh/daemon.yaml"
RELAY_CONFIG_FILE: Final = "/etc/shadowmesh-relay/relay.yaml"
#: below the home directory
USER_CONFIG_FILE: Final = ".shadowmesh/config.yaml"
SYSTEM_STATE_DIR: Final = "/var/lib/shadowmesh"
#: below the home directory, when not root
USER_STATE_DIR: Final = ".shadowmesh"
DEFAULT_PID_FILE: Final = "/var/run/shadowmesh.pid"
DEFAULT_TLS_CERT: Final = "/etc/shadowmesh/cert.pem"
DEFAULT_TLS_KEY: Final = "/etc/shadowmesh/key.pem"
#: in the state directory
IDENTITY_FILE: Final = "identity.key"
TOKEN_FILE: Final = "api.token"  # noqa: S105 - a file name
API_SOCKET_FILE: Final = "api.sock"
#: of the daemon whose state is in SYSTEM_STATE_DIR; others have theirs in their state directory
SYSTEM_API_SOCKET: Final = "/run/shadowmesh/api.sock"
#: the user that the service runs as
SERVICE_USER: Final = "shadowmesh"
MAX_CONFIG_BYTES: Final = 1 << 20

DEFAULT_API_PORT: Final = 9090
DEFAULT_METRICS_PORT: Final = 9091
#: TCP of the peer port and UDP of the data path
DEFAULT_PEER_PORT: Final = 9001

# --- Handshake messages (protocol section 4) --------------------------------------------------

PROTOCOL_VERSION: Final = 1
HEADER_BYTES: Final = 8
#: of the mode byte in a header
MODE_OFFSET: Final = 5
HASH_BYTES: Final = 32
KEY_BYTES: Final = 32
PSK_BYTES: Final = 32
IDENTITY_BYTES: Final = 32
SEED_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
X25519_BYTES: Final = 32
MLKEM_PUBLIC_BYTES: Final = 1184
MLKEM_CIPHERTEXT_BYTES: Final = 1088
MLKEM_SECRET_BYTES: Final = 32
#: tag of the handshake's AEAD, ChaCha20-Poly1305
HANDSHAKE_TAG_BYTES: Final = 16
P1_BYTES: Final = 16
P2_BYTES: Final = 48
P3_BYTES: Final = 48
MSG1_BYTES: Final = 1272
MSG2_BYTES: Final = 1336
MSG3_BYTES: Final = 200

#: bits of the mode byte (protocol section 2; the last two mesh section 4)
MODE_PSK: Final = 1
MODE_PIN: Final = 2
MODE_MEMBER: Final = 4
MODE_JOIN: Final = 8
#: between members of a network: psk(7) of mesh-rules A2, a pinned responder, certificates behind it
MEMBER_MODE: Final = MODE_PSK | MODE_PIN | MODE_MEMBER
#: who holds an invitation pins a relay, and gets one answer
JOIN_MODE: Final = MODE_PIN | MODE_JOIN
#: of a network: the newest secret and the one before it (mesh-rules C6)
MAX_NETWORK_SECRETS: Final = 2
#: a key with fewer distinct byte values was typed, not drawn (protocol section 2)
PSK_MIN_DISTINCT_BYTES: Final = 16

HANDSHAKE_MESSAGE_TIMEOUT_S: Final = 5.0
HANDSHAKE_TIMEOUT_S: Final = 10.0

# --- Transport (protocol section 5) -----------------------------------------------------------

WS_SUBPROTOCOL: Final = "shadowmesh.v1"
TLS_ALPN: Final = "http/1.1"

# --- Records (protocol section 6) -------------------------------------------------------------

KIND_UDP: Final = 0x80
KIND_WSS: Final = 0x81
AAD_BYTES: Final = 16
#: u8 kind, u8 0, u16 count, u32 key_id, u64 first_counter
WSS_MESSAGE_HEADER_BYTES: Final = 16
#: u32 before each ciphertext
WSS_RECORD_LENGTH_BYTES: Final = 4
CHACHA_TAG_BYTES: Final = 16
CHACHA_NONCE_BYTES: Final = 12
AEGIS256_TAG_BYTES: Final = 32
AEGIS256_NONCE_BYTES: Final = 32
#: what sealing adds to the body of a record, by cipher: header, inner type and tag
RECORD_OVERHEAD_BYTES: Final = {
    "chacha20-poly1305": AAD_BYTES + 1 + CHACHA_TAG_BYTES,
    "aegis-256": AAD_BYTES + 1 + AEGIS256_TAG_BYTES,
}
#: ring of the replay window, RFC 6479; one 64-bit word less of it is usable
REPLAY_WINDOW_BITS: Final = 65536
REKEY_AFTER_RECORDS: Final = 1 << 60
#: sealing stops here, before the counter would wrap
REFUSE_AFTER_RECORDS: Final = (1 << 64) - (1 << 13) - 1
REKEY_AFTER_FAILED: Final = 1 << 20
CLOSE_AFTER_FAILED: Final = 1 << 36

ETHERNET_HEADER_BYTES: Final = 14
#: an Ethernet header and two VLAN tags above the TAP's MTU
FRAME_OVERHEAD_BYTES: Final = 22
#: payload of a segmented super-frame, at most (the largest IP packet)
SUPERFRAME_MAX_BYTES: Final = 65_535
#: frames that a super-frame may be cut into, as in fast/admit.pxd
MAX_SEGMENTS: Final = 128
VIRTIO_NET_HEADER_BYTES: Final = 10

CLOSE_TEXT_MAX_BYTES: Final = 64
#: of a member, in a control record, whose body has at most 2 KiB: code and length before it
CERTIFICATE_MAX_BYTES: Final = 2048 - 3
PROBE_TOKEN_BYTES: Final = 8
#: u8 inner type, u16 frame id, u8 index, u8 total
FRAGMENT_HEADER_BYTES: Final = 5
MAX_PARTIAL_FRAMES: Final = 64
PARTIAL_FRAME_LIFE_S: Final = 1.0

MIN_MTU: Final = 1280
MAX_MTU: Final = 9000
#: queues of the TAP device, each with a thread of its own
MAX_QUEUES: Final = 4

# --- Many peers -------------------------------------------------------------------------------

#: of one daemon
MAX_PEERS: Final = 1024
#: entries of the MAC table that a configuration may ask for
MIN_MACS: Final = 256
MAX_MACS: Final = 32_768
#: of one peer, when it may have any; and of the list in its `allowed_macs`
MAX_MACS_PER_PEER: Final = 256

# --- Keys and rekeys (protocol section 7) -----------------------------------------------------

#: upper bound of the delay added to rotation_interval, so that peers do not march in step
REKEY_JITTER_S: Final = 5.0
#: the responder waits this much longer than the initiator before it asks
REKEY_REQUEST_DELAY_S: Final = 30.0
#: neither seal nor open after this age (CLOCK_BOOTTIME)
KEY_LIFETIME_S: Final = 180.0
#: how long the previous receive key stays for late datagrams
UDP_OLD_KEY_S: Final = 10.0

# --- Paths and liveness (protocol section 8) --------------------------------------------------

MAX_CANDIDATES: Final = 8
PUNCH_INTERVAL_S: Final = 0.1
PUNCH_MAX_PER_CANDIDATE: Final = 5
PUNCH_MAX_PROBES: Final = 64
PUNCH_RETRY_S: Final = 60.0
#: a peer's new address is taken up at most once in this time
ROAM_MIN_INTERVAL_S: Final = 2.0
UDP_IDLE_PROBE_S: Final = 15.0
#: sending without hearing for this long starts probing, at the same interval
UDP_PROBE_INTERVAL_S: Final = 0.5
UDP_PROBES_LOST: Final = 3
UDP_PROBES_GOOD: Final = 2
#: sent, and heard nothing for this long: probe
WSS_PROBE_AFTER_S: Final = 15.0
#: and dead this much later
WSS_DEAD_AFTER_PROBE_S: Final = 10.0

#: automatic reconnect: 1, 2, 4 ... 30 s with jitter (interface.md, "State machine")
BACKOFF_MIN_S: Final = 1.0
BACKOFF_MAX_S: Final = 30.0
BACKOFF_FACTOR: Final = 2.0
#: a delay is multiplied by a random number from 1 - this to 1 + this (our choice)
BACKOFF_JITTER: Final = 0.2

# --- Limits before authentication (protocol section 9) ----------------------------------------

#: connections that have sent nothing, in TLS or upgrade, in the handshake
MAX_ACCEPTED: Final = 1024
MAX_IN_TLS: Final = 64
MAX_IN_HANDSHAKE: Final = 64
#: per IPv4 address or IPv6 /56, in TLS and again in the handshake
MAX_PER_SOURCE: Final = 4
#: places of each stage for addresses behind which a peer was, or is said to be
PLACES_FOR_KNOWN: Final = 4
#: per second and source
MAX_NEW_PER_SECOND: Final = 20
#: TCP accept to the first byte
FIRST_BYTE_TIMEOUT_S: Final = 2.0
#: what a client may send up to the end of its upgrade, in bytes of TCP
CLIENT_ALLOWANCE_BYTES: Final = 16 * 1024
TLS_TIMEOUT_S: Final = 5.0
UPGRADE_TIMEOUT_S: Final = 2.0
#: TCP accept to authenticated
UNAUTHENTICATED_TIMEOUT_S: Final = 10.0
MAX_HEADER_BYTES: Final = 8192
#: one WebSocket message before and after authentication
MAX_MESSAGE_UNAUTHENTICATED: Final = 2048
MAX_MESSAGE: Final = 256 * 1024
MAX_WS_FRAGMENTS: Final = 64
MAX_WS_CONTROL_PER_SECOND: Final = 10
#: payload of a WebSocket control frame, RFC 6455 section 5.5
MAX_WS_CONTROL_BYTES: Final = 125

# --- WebSocket close codes (protocol sections 4 and 9, RFC 6455 section 7.4.1) -----------------

WS_NORMAL: Final = 1000
WS_GOING_AWAY: Final = 1001
WS_PROTOCOL: Final = 1002
WS_UNSUPPORTED: Final = 1003
#: never on the wire: there was no close frame
WS_ABNORMAL: Final = 1006
WS_POLICY: Final = 1008
WS_TOO_BIG: Final = 1009
#: in the registry of IANA, not in the RFC
WS_TRY_AGAIN: Final = 1013
#: any refusal of a handshake or record; all look alike
WS_HANDSHAKE_FAILED: Final = 4400

# --- Control API (our choice; the interface text gives none) ------------------------------------

#: the longest body that POST /connect and POST /disconnect take
MAX_API_BODY_BYTES: Final = 64 * 1024

#: so many probes in a row without an answer, and a path that has worked does not any more
SILENT_PROBES: Final = 2

#: that the daemon keeps and GET /events/recent gives at once; about 0.5 MiB when full
MAX_EVENTS: Final = 1000

#: last words of a capture that the daemon has ended; the CLI looks for them
CAPTURE_DAEMON_STOPS: Final = "the daemon stops"


class Inner(IntEnum):
    """Type byte inside a record. Source: protocol section 6."""

    PADDING = 0
    FRAME = 1
    CONTROL = 2
    FRAGMENT = 3
    PROBE = 4
    PROBE_ANSWER = 5
    HANDSHAKE = 6
    CLOSE = 7
    OFFLOAD_FRAME = 9
    #: mesh section 6
    MESH = 11
    PACKED = 12


class ControlCode(IntEnum):
    """First byte of a control record; unknown codes are ignored. Source: protocol section 6."""

    ACCEPT = 1
    REJECT = 2
    REKEY_REQUEST = 3
    CANDIDATES = 4
    PUNCH_NOW = 5
    ABILITIES = 6
    #: mesh section 4
    CERTIFICATE = 16


class RejectReason(IntEnum):
    """Why a responder refused an authenticated peer: the byte after REJECT."""

    COLLISION = 1
    BUSY = 2
    POLICY = 3
    ADMIN_DOWN = 4
    #: a member whose certificate is superseded or expired, and that may ask for its new one
    RENEW = 5


class CloseReason(IntEnum):
    """Why a session ends: the first byte of a close record."""

    DISCONNECT = 1
    SHUTDOWN = 2
    REPLACED = 3
    TIMEOUT = 4
    PROTOCOL = 5
    KEYS_EXPIRED = 6
    POLICY = 7


class Caps(IntFlag):
    """What a side can do, told in p1, p2 and p3. Source: protocol section 4."""

    AEGIS256 = 1
    #: unfinished checksums, super-frames of streams
    OFFLOAD = 2
    UDP = 4
    #: super-frames of datagrams: a kernel before 6.2 refuses them
    UDP_GSO = 8


class Abilities(IntFlag):
    """What a side takes beyond its Caps, whose unknown bits version 0.1 refuses; told after ACCEPT.

    Unknown bits of these are ignored. Source: protocol section 4.
    """

    PACKED = 1
