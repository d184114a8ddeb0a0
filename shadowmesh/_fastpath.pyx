"""The Python face of the data plane: the classes that own its memory, threads and keys.

    TAP --read--> slots                             fast/outbound.pxd
    slots --seal--> ring --> TLS                    fast/link_out.pxd, fast/connection.pxd
    TLS --> parser --open--> TAP                    fast/links.pxd, fast/inbound.pxd
    slots --seal--> trains --sendmmsg--> UDP socket fast/udp_out.pxd
    UDP socket --recvmmsg--> open --> TAP           fast/udp_in.pxd

The work is done by the ``nogil`` functions of ``fast/*.pxd``; here arguments are checked, memory is
owned and codes become exceptions. Everything in this module is called from the hub's thread; the
threads of the data plane (``fast/lifecycle.pxd``) never take the GIL. The four classes, each in a
file of ``fast/faces``, are one module because they share C state and name one another: in several
they would import in a circle, and the frame path would be compiled once for each.

Knows nothing of configuration, HTTP, sockets or logging. The state is drawn in ``fast/plane.pxd``.
"""

cimport cython
from cpython.buffer cimport PyBUF_READ, PyBUF_WRITE
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdlib cimport calloc
from libc.string cimport memcpy

from .fast.base cimport *
from .fast.drop_reasons cimport *
from .fast.address cimport *
from .fast.aead cimport *
from .fast.frame cimport *
from .fast.wsframe cimport *
from .fast.ring cimport *
from .fast.backlog cimport *
from .fast.datagram cimport *
from .fast.fdb cimport *
from .fast.flow cimport choose_flow_secret
from .fast.session cimport *
from .fast.peers cimport *
from .fast.port cimport *
from .fast.tap cimport *
from .fast.plane cimport *
from .fast.link_out cimport *
from .fast.inbound cimport *
from .fast.udp_out cimport *
from .fast.udp_in cimport *
from .fast.capture cimport *
from .fast.connection cimport *
from .fast.link cimport *
from .fast.links cimport *
from .fast.lifecycle cimport *
from .fast.totals cimport *
from .fast.openssl cimport Tls, checked

import os

from shadowmesh.base.errors import DeviceError, LocalProtocolError, RemoteProtocolError

if sodium_init() < 0:
    raise ImportError("libsodium could not be initialised: the system gives no randomness")
sm_chacha_load()
choose_flow_secret()

#: In the order of the DROP_ reasons in fast/drop_reasons.pxd.
DROP_NAMES = (
    "not_connected",
    "link_stalled",
    "link_lost",
    "key_expired",
    "seal_refused",
    "runt",
    "too_long",
    "bad_offload",
    "multicast_source",
    "tap_down",
    "tap_full",
    "tap_refused",
    "tap_gone",
    "udp_send",
    "queue_full",
    "own_datagram",
    "foreign_mac",
    "mac_elsewhere",
    "mac_limit",
    "flood_limit",
    "bad_vlan",
    "reserved_address",
    "split_horizon",
)
#: In the order of the REFUSED_ reasons in fast/drop_reasons.pxd: datagrams that were dropped.
REFUSAL_NAMES = (
    "unknown",
    "key_id",
    "expired",
    "replay",
    "forged",
    "inner_type",
    "fragment",
    "signals_full",
)
#: In the order of the UDP_ errors in fast/datagram.pxd.
UDP_ERROR_NAMES = (
    "EAGAIN",
    "EMSGSIZE",
    "EPERM",
    "ENETUNREACH",
    "ECONNREFUSED",
    "ENOBUFS",
    "other",
)
#: The smallest datagram that a path must carry: what every IPv6 link does, less its headers.
MIN_UDP_PAYLOAD = 1280 - 48
#: Optimisations that a developer can do without, to see what each of them brings; what they mean
#: is written in shadowmesh/service/switches.py.
SWITCHES = ("tso", "csum", "gso", "gro", "join", "pack", "batch")
CIPHER_NAMES = {"chacha20-poly1305": CIPHER_CHACHA20_POLY1305, "aegis-256": CIPHER_AEGIS256}

_WHY = {
    E_PROTOCOL: "broke the WebSocket protocol",
    E_UNSUPPORTED: "sent a text message; only binary ones are taken",
    E_POLICY: "sent more fragments, control frames or control records than are allowed",
    E_TOO_BIG: "sent a message over the size limit",
    E_RECORD: "sent a record that did not verify",
}
_WEBSOCKET_EVENTS = {OP_PING: "ping", OP_PONG: "pong", OP_CLOSE: "close"}


def build_info() -> dict:
    """Return what the extension was built with.

    Returns:
        ``libsodium``: its version; ``aegis256``: compiled in and fast on this processor.
    """
    return {
        "libsodium": sodium_version_string().decode("ascii"),
        "aegis256": bool(sm_aegis256_usable()),
    }


cdef int store_address(address_t *address, str host, int port, int family) except -1:
    # `family` is the socket's.
    cdef int code
    cdef bytes text = os.fsencode(host)
    if not 0 < port <= 65535:
        raise ValueError(f"port {port} is outside 1..65535")
    if b"\0" in text:
        raise ValueError(f"{host!r} has a null character")
    code = parse_address(address, text, <uint16_t>port, family)
    if code == E_ZONE:
        raise OSError(f"{host}: there is no interface with this name")
    if code < 0:
        raise OSError(f"{host} is no IP address for this socket")
    return 0


cdef tuple load_address(const address_t *address):
    cdef char text[ADDRESS_TEXT_BYTES]
    cdef uint16_t port = write_address(address, text)
    return (<bytes>text).decode("ascii"), port


include "fast/faces/plane.pxi"
include "fast/faces/port.pxi"
include "fast/faces/session.pxi"
include "fast/faces/pipe.pxi"
