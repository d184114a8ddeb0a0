"""Numbers that depend on one another, and the copies of them in C."""

from __future__ import annotations

import ast
import operator
import re
from pathlib import Path

import pytest

import shadowmesh
from shadowmesh import config
from shadowmesh.base import constants as c
from shadowmesh.base.constants import (
    Abilities,
    Caps,
    CloseReason,
    ControlCode,
    Inner,
    RejectReason,
)
from shadowmesh.config.values import duration

PACKAGE = Path(shadowmesh.__file__).parent
DEFAULTS = {key.name: key.default for key in config.schema.KEYS.values()}


def default_s(name: str) -> float:
    return duration(0, 1e9)(DEFAULTS[name])


# --- Lengths ----------------------------------------------------------------------------------


def test_the_handshake_messages_are_the_sum_of_their_parts():
    tag = c.HANDSHAKE_TAG_BYTES
    identity = c.IDENTITY_BYTES + tag
    signature = c.SIGNATURE_BYTES + tag
    head = c.HEADER_BYTES + c.X25519_BYTES
    assert head + c.MLKEM_PUBLIC_BYTES + tag + c.P1_BYTES + tag == c.MSG1_BYTES
    assert (
        head + c.MLKEM_CIPHERTEXT_BYTES + tag + identity + signature + c.P2_BYTES + tag
    ) == c.MSG2_BYTES
    assert c.HEADER_BYTES + identity + signature + c.P3_BYTES + tag == c.MSG3_BYTES


def test_every_handshake_message_fits_the_cap_before_authentication():
    largest = max(c.MSG1_BYTES, c.MSG2_BYTES, c.MSG3_BYTES)
    assert largest < c.MAX_MESSAGE_UNAUTHENTICATED < c.MAX_MESSAGE


def test_the_largest_super_frame_fits_one_websocket_message():
    record = 1 + c.VIRTIO_NET_HEADER_BYTES + c.SUPERFRAME_MAX_BYTES + c.FRAME_OVERHEAD_BYTES
    sealed = record + max(c.CHACHA_TAG_BYTES, c.AEGIS256_TAG_BYTES)
    assert c.WSS_MESSAGE_HEADER_BYTES + c.WSS_RECORD_LENGTH_BYTES + sealed <= c.MAX_MESSAGE


def test_the_frame_overhead_is_an_ethernet_header_and_two_vlan_tags():
    assert c.FRAME_OVERHEAD_BYTES == c.ETHERNET_HEADER_BYTES + 2 * 4


def test_records_cannot_be_taken_for_stun():
    # RFC 7983: STUN begins with 0 to 3, TURN channels with 64 to 79, DTLS with 20 to 63
    assert min(c.KIND_UDP, c.KIND_WSS) >= 0x80
    assert c.KIND_UDP != c.KIND_WSS


def test_the_default_mtu_lies_in_the_range():
    assert c.MIN_MTU <= int(DEFAULTS["network.mtu"]) <= c.MAX_MTU
    assert c.MIN_MTU == 1280  # IPv6 needs no less (RFC 8200, section 5)


# --- Counters ---------------------------------------------------------------------------------


def test_keys_are_changed_long_before_their_counter_wraps():
    assert c.REKEY_AFTER_RECORDS < c.REFUSE_AFTER_RECORDS < 1 << 64
    assert c.REKEY_AFTER_FAILED < c.CLOSE_AFTER_FAILED


# --- Times ------------------------------------------------------------------------------------


def test_a_rekey_ends_before_the_old_keys_do():
    # the responder's request comes last: rotation, jitter, its delay, one whole handshake
    longest = 120 + c.REKEY_JITTER_S + c.REKEY_REQUEST_DELAY_S + c.HANDSHAKE_TIMEOUT_S
    assert longest < c.KEY_LIFETIME_S
    with pytest.raises(ValueError):
        config.schema.KEYS["encryption.rotation_interval"].parse("121s")
    assert c.UDP_OLD_KEY_S < c.KEY_LIFETIME_S


def test_the_steps_before_authentication_fit_the_whole():
    assert c.HANDSHAKE_MESSAGE_TIMEOUT_S < c.HANDSHAKE_TIMEOUT_S
    assert c.TLS_TIMEOUT_S + c.UPGRADE_TIMEOUT_S < c.UNAUTHENTICATED_TIMEOUT_S


def test_a_quiet_link_is_kept_alive_before_it_is_given_up():
    read_timeout = default_s("websocket.read_timeout")
    assert default_s("websocket.keepalive_interval") < read_timeout
    assert read_timeout > c.WSS_PROBE_AFTER_S + c.WSS_DEAD_AFTER_PROBE_S


def test_one_round_of_punching_fits_its_default_time_and_its_probes():
    rounds = default_s("nat.hole_punch_timeout") / c.PUNCH_INTERVAL_S
    assert rounds == pytest.approx(c.PUNCH_MAX_PER_CANDIDATE)
    assert c.MAX_CANDIDATES * c.PUNCH_MAX_PER_CANDIDATE <= c.PUNCH_MAX_PROBES


def test_reconnecting_goes_1_2_4_to_30_seconds():
    delays = [c.BACKOFF_MIN_S]
    while delays[-1] < c.BACKOFF_MAX_S:
        delays.append(min(c.BACKOFF_MAX_S, delays[-1] * c.BACKOFF_FACTOR))
    assert delays == [1, 2, 4, 8, 16, 30]
    assert 0 < c.BACKOFF_JITTER < 1


# --- Limits and codes -------------------------------------------------------------------------


def test_one_source_cannot_take_all_places():
    assert c.MAX_PER_SOURCE < c.MAX_IN_TLS - c.PLACES_FOR_KNOWN
    assert c.MAX_PER_SOURCE < c.MAX_IN_HANDSHAKE - c.PLACES_FOR_KNOWN


def test_close_codes_are_those_that_may_be_sent():
    for code in (c.WS_GOING_AWAY, c.WS_PROTOCOL, c.WS_UNSUPPORTED, c.WS_POLICY, c.WS_TOO_BIG):
        assert 1000 <= code <= 1011
    # RFC 6455, section 7.4.2: private use
    assert 4000 <= c.WS_HANDSHAKE_FAILED <= 4999


def test_the_numbers_on_the_wire_are_those_of_the_protocol():
    assert [kind.value for kind in Inner] == [0, 1, 2, 3, 4, 5, 6, 7, 9, 11, 12]
    assert [code.value for code in ControlCode] == [1, 2, 3, 4, 5, 6, 16]
    assert [reason.value for reason in RejectReason] == [1, 2, 3, 4, 5]
    assert [reason.value for reason in CloseReason] == [1, 2, 3, 4, 5, 6, 7]
    assert [cap.value for cap in Caps] == [1, 2, 4, 8]


# --- Copies in C ------------------------------------------------------------------------------

#: C name -> Python value, where the names differ
RENAMED = {
    "AEGIS_NONCE_BYTES": c.AEGIS256_NONCE_BYTES,
    "AEGIS_TAG_BYTES": c.AEGIS256_TAG_BYTES,
    "MAX_TAG_BYTES": max(c.CHACHA_TAG_BYTES, c.AEGIS256_TAG_BYTES),
    "VNET_HEADER_BYTES": c.VIRTIO_NET_HEADER_BYTES,
    "MIN_FRAME": c.ETHERNET_HEADER_BYTES,
    "FRAME_OVERHEAD": c.FRAME_OVERHEAD_BYTES,
    "MAX_SUPER_FRAME": c.SUPERFRAME_MAX_BYTES + c.FRAME_OVERHEAD_BYTES,
    "MAX_UNAUTHENTICATED": c.MAX_MESSAGE_UNAUTHENTICATED,
    "MAX_FRAGMENTS": c.MAX_WS_FRAGMENTS,
    "MAX_CONTROLS_PER_SECOND": c.MAX_WS_CONTROL_PER_SECOND,
    "MAX_CONTROL_PAYLOAD": c.MAX_WS_CONTROL_BYTES,
    "MESSAGE_HEADER_BYTES": c.WSS_MESSAGE_HEADER_BYTES,
    "LENGTH_BYTES": c.WSS_RECORD_LENGTH_BYTES,
    "CAP_AEGIS256": Caps.AEGIS256,
    "CAP_OFFLOAD": Caps.OFFLOAD,
    "CAP_UDP": Caps.UDP,
    "CAP_UDP_GSO": Caps.UDP_GSO,
    "ABILITY_PACKED": Abilities.PACKED,
    **{f"INNER_{kind.name}": kind for kind in Inner},
}

_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.LShift: operator.lshift,
}


def evaluate(node: ast.expr, known: dict[str, int]) -> int:
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.Name(id=name):
            return known[name]
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATORS[type(op)](evaluate(left, known), evaluate(right, known))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -evaluate(operand, known)
    raise AssertionError(f"cannot evaluate {ast.dump(node)}")


def c_numbers() -> dict[str, int]:
    """Return the members with a value of all anonymous enums of the data plane."""
    known: dict[str, int] = {}
    waiting: list[tuple[str, str]] = []
    for path in sorted((PACKAGE / "fast").glob("*.pxd")):
        inside = False
        for line in path.read_text(encoding="utf-8").splitlines():
            if re.match(r"cdef enum:", line):
                inside = True
            elif line and not line[0].isspace():
                inside = False
            elif inside and (found := re.match(r"\s+([A-Z][A-Z0-9_]*)\s*=\s*([^#]+)", line)):
                waiting.append((found[1], found[2].strip()))
    while waiting:
        left = []
        for name, text in waiting:
            try:
                known[name] = evaluate(ast.parse(text, mode="eval").body, known)
            except KeyError:  # a number of another file, perhaps a later one
                left.append((name, text))
        assert len(left) < len(waiting), left
        waiting = left
    return known


C_NUMBERS = c_numbers()


@pytest.mark.parametrize("name", sorted(RENAMED))
def test_the_copy_in_c_is_the_same(name):
    assert C_NUMBERS[name] == RENAMED[name]


def test_strangers_cannot_take_every_session_of_the_data_plane():
    assert C_NUMBERS["MAX_SESSIONS"] >= c.MAX_IN_HANDSHAKE + 16


def test_every_session_of_every_port_may_hold_all_the_key_ids_that_one_may_have():
    sessions = C_NUMBERS["MAX_SESSIONS"] + C_NUMBERS["PORT_SESSIONS"] * C_NUMBERS["MAX_PORTS"]
    assert C_NUMBERS["MAX_EPOCHS"] >= sessions * C_NUMBERS["SESSION_EPOCHS"]
    # ... and a link of its own
    assert C_NUMBERS["MAX_LINKS"] >= sessions


def test_numbers_with_the_same_name_in_c_and_python_are_the_same():
    shared = {
        name: value for name, value in vars(c).items() if name in C_NUMBERS and name not in RENAMED
    }
    assert {"KEY_BYTES", "MAX_MESSAGE", "AAD_BYTES", "KIND_WSS"} <= shared.keys()
    assert {name: C_NUMBERS[name] for name in shared} == shared


def test_the_replay_ring_in_c_has_the_size_of_the_protocol():
    assert C_NUMBERS["WINDOW_WORDS"] * 64 == c.REPLAY_WINDOW_BITS
    assert C_NUMBERS["WINDOW_BITS"] == c.REPLAY_WINDOW_BITS - 64


def test_the_c_header_has_the_same_life_and_limit_of_a_key():
    text = (PACKAGE / "fast" / "compat.h").read_text(encoding="utf-8")
    found = dict(re.findall(r"#define (SM_\w+) UINT64_C\((\w+)\)", text))
    assert int(found["SM_KEY_LIFETIME_NS"], 0) == c.KEY_LIFETIME_S * 1e9
    assert int(found["SM_SEAL_LIMIT"], 0) == c.REFUSE_AFTER_RECORDS
