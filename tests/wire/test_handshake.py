"""Tests of the handshake: vectors, then every refusal, then random honest parties."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from shadowmesh.base.errors import LocalProtocolError, RemoteProtocolError
from shadowmesh.keys import sodium
from shadowmesh.keys.identity import Identity
from shadowmesh.wire.handshake import machines
from shadowmesh.wire.handshake.agreement import HandshakeResult, Offer, Policy, SystemEntropy
from shadowmesh.wire.handshake.machines import Initiator, Responder
from shadowmesh.wire.handshake.messages import P1, P2, P3
from shadowmesh.wire.handshake.symmetric import SymmetricState
from tests.keys.test_sodium import SMALL_ORDER

VECTOR: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "handshake.json").read_text()
)


def vector(name: str) -> bytes:
    return bytes.fromhex(VECTOR[name])


ID_I, ID_R = Identity(vector("id_i_seed")), Identity(vector("id_r_seed"))
ID_M = Identity(bytes(range(32)))  # in the middle
PSK = vector("psk")
CERT = vector("p2")[16:]
OFFER_I = Offer(caps=0, tap_mtu=1500, tls_cert_sha256=CERT, key_id=0x55667788)
OFFER_R = Offer(caps=0, tap_mtu=1500, tls_cert_sha256=CERT, key_id=0x11223344)
BOTH_I = Policy(ID_I, PSK, ID_R.public_key)
BOTH_R = Policy(ID_R, PSK, ID_I.public_key)
PSK_I = Policy(ID_I, PSK, None)
PSK_R = Policy(ID_R, PSK, None)
#: a responder with a list of peers, with and without a pre-shared key
LIST_R = Policy(ID_R, PSK, None, trusted=frozenset({ID_M.public_key, ID_I.public_key}))
KEYS_R = replace(LIST_R, psk=None)
ZEROS = bytes(32)


class VectorEntropy:
    """The randomness of the vector; ML-KEM's coins cannot be set, so its result is."""

    def __init__(self, name: str) -> None:
        self.name = name

    def x25519_private(self) -> X25519PrivateKey:
        return X25519PrivateKey.from_private_bytes(vector(self.name))

    def mlkem_private(self) -> MLKEM768PrivateKey:
        return MLKEM768PrivateKey.from_seed_bytes(vector("mlkem_seed"))

    def encapsulate(self, public_key: object) -> tuple[bytes, bytes]:
        return vector("mlkem_ss"), vector("mlkem_ct")


def initiator(
    policy: Policy = BOTH_I, offer: Offer = OFFER_I, prev_h: bytes = ZEROS, **more: Any
) -> Initiator:
    return Initiator(policy, offer, prev_h, **more)


def responder(
    policy: Policy = BOTH_R, offer: Offer = OFFER_R, prev_h: bytes = ZEROS, **more: Any
) -> Responder:
    return Responder(policy, offer, prev_h, **more)


def run(one: Initiator, other: Responder) -> tuple[HandshakeResult, HandshakeResult]:
    result = other.receive_msg3(one.receive_msg2(other.receive_msg1(one.first_message())))
    return one.result, result


def vector_initiator() -> Initiator:
    machine = initiator(entropy=VectorEntropy("e_i"))
    assert machine.first_message() == vector("msg1")
    return machine


def vector_responder() -> Responder:
    return responder(entropy=VectorEntropy("e_r"))


def vector_responder_after_msg1() -> Responder:
    machine = vector_responder()
    assert machine.receive_msg1(vector("msg1")) == vector("msg2")
    return machine


def refused(call: Callable[[], object], reason: str | None = None) -> RemoteProtocolError:
    """Check that call is refused as the protocol says, and that the cause gives nothing away."""
    with pytest.raises(RemoteProtocolError, match=reason) as caught:
        call()
    assert caught.value.close_code == 4400
    assert PSK.hex() not in str(caught.value)
    return caught.value


# --- Vectors ----------------------------------------------------------------------------------


def test_the_vector_is_reproduced_to_the_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    chaining_keys: list[bytes] = []
    export = SymmetricState.export

    def recording(self: SymmetricState, names: tuple[bytes, ...]) -> tuple[bytes, ...]:
        chaining_keys.append(bytes(self._ck))
        return export(self, names)

    monkeypatch.setattr(SymmetricState, "export", recording)
    assert machines.LABEL.decode() == VECTOR["label"]
    one, other = initiator(entropy=VectorEntropy("e_i")), vector_responder()
    msg1 = one.first_message()
    msg2 = other.receive_msg1(msg1)
    msg3 = one.receive_msg2(msg2)
    result = other.receive_msg3(msg3)
    assert (msg1, msg2, msg3) == (vector("msg1"), vector("msg2"), vector("msg3"))
    assert chaining_keys == [vector("ck")] * 2
    for side in (one.result, result):
        assert side.h == vector("h")
        assert side.mode == VECTOR["mode"]
        assert {
            "wss i2r": side.keys.wss_i2r.hex(),
            "wss r2i": side.keys.wss_r2i.hex(),
            "udp i2r": side.keys.udp_i2r.hex(),
            "udp r2i": side.keys.udp_r2i.hex(),
            "exporter": side.keys.exporter.hex(),
        } == VECTOR["keys"]
    assert (one.result.initiator, result.initiator) == (True, False)
    assert (one.result.local_key_id, one.result.remote_key_id) == (0x55667788, 0x11223344)
    assert (result.local_key_id, result.remote_key_id) == (0x11223344, 0x55667788)
    assert one.result.peer_public_key == ID_R.public_key
    assert result.peer_public_key == ID_I.public_key
    assert one.result.peer == OFFER_R
    assert result.peer == OFFER_I
    assert one.result.cipher == result.cipher == "chacha20-poly1305"


def test_the_payloads_of_the_vector_are_ours() -> None:
    assert P1(0).pack() == vector("p1")
    assert P2(OFFER_R.key_id, 1500, 0, CERT).pack() == vector("p2")
    assert P3(OFFER_I.key_id, 1500, 0, CERT).pack() == vector("p3")


# --- Changed bytes ----------------------------------------------------------------------------


def mutations(message: bytes, all_bits_below: int) -> Iterator[bytes]:
    """Every byte changed: in all single bits up to a place, then in one bit and in all."""
    for place in range(len(message)):
        masks = [1 << bit for bit in range(8)]
        if place >= all_bits_below:
            masks = [1 << place % 8, 0xFF]
        for mask in masks:
            changed = bytearray(message)
            changed[place] ^= mask
            yield bytes(changed)


def wrong_sizes(message: bytes) -> Iterator[bytes]:
    for size in (0, 1, 5, 7, 8, 40, len(message) // 2, len(message) - 1):
        yield message[:size]
    yield message + b"\0"
    yield message * 2


def test_every_changed_byte_of_msg1_is_refused() -> None:
    for forged in mutations(vector("msg1"), 40):
        refused(lambda: vector_responder().receive_msg1(forged))  # noqa: B023


def test_every_changed_byte_of_msg2_is_refused() -> None:
    for forged in mutations(vector("msg2"), 40):
        refused(lambda: vector_initiator().receive_msg2(forged))  # noqa: B023


def test_every_changed_byte_of_msg3_is_refused() -> None:
    for forged in mutations(vector("msg3"), 200):
        refused(lambda: vector_responder_after_msg1().receive_msg3(forged))  # noqa: B023


def test_every_other_length_is_refused() -> None:
    for number, start, verb in (
        (1, vector_responder, "receive_msg1"),
        (2, vector_initiator, "receive_msg2"),
        (3, vector_responder_after_msg1, "receive_msg3"),
    ):
        for forged in wrong_sizes(vector(f"msg{number}")):
            refused(lambda: getattr(start(), verb)(forged), f"msg{number} has")  # noqa: B023


@settings(max_examples=80)
@given(tail=st.binary(min_size=1264, max_size=1264))
def test_random_bytes_behind_a_good_header_are_refused(tail: bytes) -> None:
    refused(lambda: responder().receive_msg1(vector("msg1")[:8] + tail), "ML-KEM key")


def test_a_refusal_kills_the_machine_and_its_secrets() -> None:
    cases: list[tuple[Any, str, bytes]] = [
        (vector_responder(), "receive_msg1", vector("msg1")),
        (vector_initiator(), "receive_msg2", vector("msg2")),
        (vector_responder_after_msg1(), "receive_msg3", vector("msg3")),
    ]
    for machine, verb, good in cases:
        refused(lambda: getattr(machine, verb)(good[:-1] + bytes((good[-1] ^ 1,))))  # noqa: B023
        assert_erased(machine)
        with pytest.raises(LocalProtocolError, match="out of turn"):
            getattr(machine, verb)(good)
        if isinstance(machine, Initiator):
            with pytest.raises(LocalProtocolError, match="no result"):
                machine.result  # noqa: B018


def assert_erased(machine: Initiator | Responder) -> None:
    assert not any(machine._state._ck)
    assert not any(machine._state._k)
    if isinstance(machine, Initiator):
        assert machine._ephemeral is None
        assert machine._kem is None


# --- Turns ------------------------------------------------------------------------------------


def test_a_finished_machine_is_erased_and_does_nothing_more() -> None:
    one, other = initiator(), responder()
    msg1 = one.first_message()
    msg2 = other.receive_msg1(msg1)
    msg3 = one.receive_msg2(msg2)
    other.receive_msg3(msg3)
    for call in (
        one.first_message,
        lambda: one.receive_msg2(msg2),
        lambda: other.receive_msg1(msg1),
        lambda: other.receive_msg3(msg3),
    ):
        with pytest.raises(LocalProtocolError, match="out of turn"):
            call()
    assert_erased(one)
    assert_erased(other)
    assert one.result.h == one.result.h


def test_a_call_out_of_turn_changes_nothing() -> None:
    one, other = initiator(), responder()
    with pytest.raises(LocalProtocolError):
        one.receive_msg2(vector("msg2"))
    with pytest.raises(LocalProtocolError):
        one.result  # noqa: B018
    with pytest.raises(LocalProtocolError):
        other.receive_msg3(vector("msg3"))
    msg1 = one.first_message()
    with pytest.raises(LocalProtocolError):
        one.first_message()
    msg2 = other.receive_msg1(msg1)
    with pytest.raises(LocalProtocolError):
        other.receive_msg1(msg1)
    assert other.receive_msg3(one.receive_msg2(msg2)).keys == one.result.keys


def test_a_bug_in_the_middle_kills_the_machine_too() -> None:
    class Broken(VectorEntropy):
        def mlkem_private(self) -> MLKEM768PrivateKey:
            raise RuntimeError("no randomness")

    one = initiator(entropy=Broken("e_i"))
    with pytest.raises(RuntimeError):
        one.first_message()
    assert_erased(one)
    with pytest.raises(LocalProtocolError):
        one.first_message()


# --- Modes ------------------------------------------------------------------------------------

MODES = [(psk, pin) for psk in (False, True) for pin in (False, True)]


@pytest.mark.parametrize(("psk_i", "pin_i"), MODES)
@pytest.mark.parametrize(("psk_r", "pin_r"), MODES)
def test_configurations_agree_or_are_refused(
    psk_i: bool, pin_i: bool, psk_r: bool, pin_r: bool
) -> None:
    policy_i = Policy(ID_I, PSK if psk_i else None, ID_R.public_key if pin_i else None)
    policy_r = Policy(ID_R, PSK if psk_r else None, ID_I.public_key if pin_r else None)
    assert policy_i.mode == psk_i + 2 * pin_i
    if policy_i.mode == 0 or policy_r.mode == 0:
        with pytest.raises(LocalProtocolError, match=r"neither encryption\.key nor peer\.public"):
            run(initiator(policy_i), responder(policy_r))
    elif psk_i == psk_r:
        one, other = run(initiator(policy_i), responder(policy_r))
        assert one.keys == other.keys
        assert one.mode == other.mode == policy_i.mode
    else:
        who = "we do" if psk_r else "the peer does"
        refused(lambda: run(initiator(policy_i), responder(policy_r)), f"one side uses.*{who}")


@pytest.mark.parametrize(
    ("policy", "accepted"),
    [
        (BOTH_R, {1, 3}),
        (PSK_R, {1, 3}),
        (Policy(ID_R, None, ID_I.public_key), {2}),
        (LIST_R, {3}),
        (KEYS_R, {2}),
    ],
    ids=["both", "psk", "pin", "list", "list without psk"],
)
def test_a_responder_takes_no_mode_byte_but_those_of_its_configuration(
    policy: Policy, accepted: set[int]
) -> None:
    for mode in range(256):
        forged = bytearray(vector("msg1"))
        forged[5] = mode
        # Those that are accepted end at the next check: the vector was made for mode 3 and a PSK.
        reason = "does not authenticate" if mode in accepted else "mode|one side|neither|whoever"
        if (policy, mode) not in ((BOTH_R, 3), (PSK_R, 3), (LIST_R, 3)):
            refused(lambda: responder(policy).receive_msg1(bytes(forged)), reason)  # noqa: B023


def test_a_wrong_psk_ends_at_the_gate() -> None:
    other = bytes(range(32, 64))
    for policy in (BOTH_R, PSK_R):
        refused(
            lambda: run(initiator(BOTH_I), responder(replace(policy, psk=other))),  # noqa: B023
            "ML-KEM key does not authenticate",
        )


def test_an_initiator_that_pins_another_key_ends_at_the_gate() -> None:
    for psk in (PSK, None):
        policy_i = Policy(ID_I, psk, ID_M.public_key)
        policy_r = Policy(ID_R, psk, ID_I.public_key)
        refused(
            lambda: run(initiator(policy_i), responder(policy_r)),  # noqa: B023
            "ML-KEM key does not authenticate",
        )


def test_a_responder_that_pins_another_key_refuses_msg3() -> None:
    for psk in (PSK, None):
        policy_i = Policy(ID_I, psk, ID_R.public_key)
        policy_r = Policy(ID_R, psk, ID_M.public_key)
        refused(lambda: run(initiator(policy_i), responder(policy_r)), "not the pinned")  # noqa: B023


@pytest.mark.parametrize("policy", [LIST_R, KEYS_R], ids=["psk", "no psk"])
def test_a_responder_with_a_list_takes_every_key_in_it_and_no_other(policy: Policy) -> None:
    for identity in (ID_I, ID_M):
        dials = Policy(identity, policy.psk, ID_R.public_key)
        one, other = run(initiator(dials), responder(policy))
        assert one.keys == other.keys
        assert other.peer_public_key == identity.public_key
    stranger = Policy(Identity(bytes(range(1, 33))), policy.psk, ID_R.public_key)
    refused(lambda: run(initiator(stranger), responder(policy)), "none of those in peers")
    nobody = replace(policy, trusted=frozenset())
    refused(lambda: run(initiator(dials), responder(nobody)), "none of those in peers")


def test_a_responder_with_a_list_refuses_who_dials_any_holder_of_the_key() -> None:
    refused(lambda: run(initiator(PSK_I), responder(LIST_R)), "set peer.public_key")


def test_nothing_costly_happens_before_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a public-key operation before the gate")

    class NoEntropy:
        x25519_private = mlkem_private = encapsulate = never

    machine = responder(replace(BOTH_R, psk=bytes(range(32))), entropy=NoEntropy())
    msg1 = initiator().first_message()
    for name in ("X25519PublicKey", "MLKEM768PublicKey", "sodium"):
        monkeypatch.setattr(machines, name, None)
    refused(lambda: machine.receive_msg1(msg1), "ML-KEM key does not authenticate")


# --- Bad keys from a peer that can otherwise speak the protocol --------------------------------


class FakePublic:
    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    def public_bytes_raw(self) -> bytes:
        return self.raw


class FakeX25519:
    """A private key that shows another public key."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    def public_key(self) -> FakePublic:
        return FakePublic(self.raw)

    def exchange(self, _: object) -> bytes:
        return bytes(32)  # what every private key gives with a small-order public key


class FakeEntropy(SystemEntropy):
    def __init__(self, x25519: bytes | None = None, mlkem: bytes | None = None) -> None:
        self.x25519, self.mlkem = x25519, mlkem

    def x25519_private(self) -> Any:
        return super().x25519_private() if self.x25519 is None else FakeX25519(self.x25519)

    def mlkem_private(self) -> Any:
        return super().mlkem_private() if self.mlkem is None else FakeX25519(self.mlkem)


P = 2**255 - 19
# The u of all points of small order on the curve and its twist, in every encoding below 2**256:
# 0, 1, -1 and the two of order 8; with p added, with bit 255 set.
U8A = int.from_bytes(
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"), "little"
)
U8B = int.from_bytes(
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"), "little"
)
SMALL_ORDER_U = [
    (u | top << 255).to_bytes(32, "little")
    for u in (0, 1, U8A, U8B, P - 1, P, P + 1)
    for top in (0, 1)
]


@pytest.mark.parametrize("point", SMALL_ORDER_U, ids=bytes.hex)
def test_a_small_order_x25519_key_is_refused_by_either_side(point: bytes) -> None:
    refused(lambda: run(initiator(entropy=FakeEntropy(x25519=point)), responder()), "all zero")
    refused(lambda: run(initiator(), responder(entropy=FakeEntropy(x25519=point))), "all zero")


def with_coefficient(key: bytes, index: int, value: int) -> bytes:
    """Return an encapsulation key with one of its 768 12-bit coefficients replaced."""
    bits = int.from_bytes(key[:1152], "little")
    bits &= ~(0xFFF << 12 * index)
    return (bits | value << 12 * index).to_bytes(1152, "little") + key[1152:]


@pytest.mark.parametrize("index", [0, 1, 255, 256, 500, 767])
@pytest.mark.parametrize("value", [3329, 3330, 4095])
def test_an_mlkem_key_with_a_coefficient_beyond_the_modulus_is_refused(
    index: int, value: int
) -> None:
    """FIPS 203 section 7.2, the check that cryptography does when it loads the key."""
    key = MLKEM768PrivateKey.generate().public_key().public_bytes_raw()
    bad = with_coefficient(key, index, value)
    refused(
        lambda: run(initiator(entropy=FakeEntropy(mlkem=bad)), responder()), "ML-KEM key is not"
    )


def test_an_mlkem_key_with_the_largest_coefficient_is_accepted() -> None:
    key = MLKEM768PrivateKey.generate().public_key().public_bytes_raw()
    good = with_coefficient(key, 5, 3328)
    one = initiator(entropy=FakeEntropy(mlkem=good))
    assert len(responder().receive_msg1(one.first_message())) == 1336


class Mask:
    """A signer that shows one public key and signs with another."""

    def __init__(self, shown: bytes, signer: Identity) -> None:
        self.public_key = shown
        self.sign = signer.sign


class ResponderClaiming(Responder):
    """A responder that mixes the key the initiator expects and shows another."""

    expected = ID_R.public_key

    def _begin(self, responder_id: bytes, psk: bytes) -> None:
        super()._begin(self.expected if any(responder_id) else responder_id, psk)


@pytest.mark.parametrize(
    "key",
    [*SMALL_ORDER, b"\xff" * 32, (P + 3).to_bytes(32, "little"), (2).to_bytes(32, "little")],
    ids=bytes.hex,
)
def test_a_bad_identity_is_refused_by_either_side(key: bytes) -> None:
    assert not sodium.is_valid_public_key(key)
    mask = Mask(key, ID_M)
    # On the responder's side also with the pin set to that key: it is never a good key.
    for policy in (PSK_R, Policy(ID_R, PSK, key)):
        refused(
            lambda: run(initiator(replace(PSK_I, identity=mask)), responder(policy)),  # noqa: B023
            "not a valid Ed25519",
        )
    refused(
        lambda: run(initiator(PSK_I), responder(replace(PSK_R, identity=mask))),
        "not a valid Ed25519",
    )


def test_our_own_identity_is_refused_by_the_initiator() -> None:
    refused(
        lambda: run(initiator(PSK_I), responder(replace(PSK_R, identity=ID_I))),
        "this daemon itself",
    )


def test_our_own_identity_is_refused_by_the_responder() -> None:
    class Blind(Initiator):
        def _check_identity(self, *_: object) -> None:
            pass

    refused(
        lambda: run(Blind(replace(PSK_I, identity=ID_R), OFFER_I), responder(PSK_R)),
        "this daemon itself",
    )


def test_a_side_does_not_answer_its_own_messages() -> None:
    one = initiator()
    msg1 = one.first_message()
    refused(lambda: one.receive_msg2(msg1 + bytes(64)), "msg2 begins")
    refused(lambda: vector_responder_after_msg1().receive_msg3(vector("msg2")[:200]), "begins")


# --- Somebody in the middle -------------------------------------------------------------------


def test_a_psk_holder_cannot_show_the_pinned_identity_without_its_key() -> None:
    mask_r = Mask(ID_R.public_key, ID_M)
    refused(
        lambda: run(initiator(BOTH_I), responder(replace(PSK_R, identity=mask_r))),
        "signature does not verify",
    )
    mask_i = Mask(ID_I.public_key, ID_M)
    refused(
        lambda: run(initiator(replace(BOTH_I, identity=mask_i)), responder(BOTH_R)),
        "signature does not verify",
    )


def test_a_psk_holder_that_shows_its_own_identity_meets_the_pin() -> None:
    middle = ResponderClaiming(replace(PSK_R, identity=ID_M), OFFER_R)
    refused(lambda: run(initiator(BOTH_I), middle), "not the pinned")
    refused(
        lambda: run(initiator(replace(BOTH_I, identity=ID_M)), responder(BOTH_R)), "not the pinned"
    )


def test_without_a_pin_a_psk_holder_is_accepted_under_its_own_name_only() -> None:
    one, other = run(initiator(PSK_I), responder(replace(PSK_R, identity=ID_M)))
    assert one.peer_public_key == ID_M.public_key
    assert other.peer_public_key == ID_I.public_key


def test_a_signature_of_the_real_peer_cannot_be_moved_into_another_handshake() -> None:
    class Recorded:
        """Shows the real responder and repeats a signature it made elsewhere."""

        public_key = ID_R.public_key
        signature = b""

        def sign(self, message: bytes) -> bytes:
            return self.signature

    taken: list[bytes] = []

    class Tapped(Mask):
        def __init__(self) -> None:
            super().__init__(ID_R.public_key, ID_R)
            self.sign = self.keep

        def keep(self, message: bytes) -> bytes:
            taken.append(ID_R.sign(message))
            return taken[-1]

    run(initiator(PSK_I), responder(replace(PSK_R, identity=Tapped())))
    recorded = Recorded()
    recorded.signature = taken[0]
    refused(
        lambda: run(initiator(PSK_I), responder(replace(PSK_R, identity=recorded))),
        "signature does not verify",
    )


def test_the_initiator_signs_for_one_responder() -> None:
    """S holds the responder's identity, so a signature for M is none for R."""

    class WrongPeer(Initiator):
        def _seal_identity(self, role: bytes, peer_id: bytes) -> bytes:
            return super()._seal_identity(role, ID_M.public_key)

    refused(lambda: run(WrongPeer(BOTH_I, OFFER_I), responder(BOTH_R)), "signature does not verify")


def test_a_responders_signature_is_none_of_an_initiator() -> None:
    class WrongRole(Initiator):
        def _seal_identity(self, role: bytes, peer_id: bytes) -> bytes:
            return super()._seal_identity(b"responder", peer_id)

    refused(lambda: run(WrongRole(BOTH_I, OFFER_I), responder(BOTH_R)), "signature does not verify")


# --- Replays ----------------------------------------------------------------------------------


def test_messages_of_one_handshake_are_worthless_in_another() -> None:
    one, other = initiator(), responder()
    msg1 = one.first_message()
    msg2 = other.receive_msg1(msg1)
    msg3 = one.receive_msg2(msg2)
    other.receive_msg3(msg3)

    again = responder()
    assert again.receive_msg1(msg1) != msg2  # an answer, under other keys
    refused(lambda: again.receive_msg3(msg3), "identity does not authenticate")

    next_one, next_other = initiator(), responder()
    next_msg2 = next_other.receive_msg1(next_one.first_message())
    refused(lambda: next_one.receive_msg2(msg2), "does not authenticate")
    refused(lambda: next_other.receive_msg3(msg3), "identity does not authenticate")
    assert next_msg2 != msg2


def test_a_rekey_is_bound_to_the_session_it_renews() -> None:
    first, _ = run(initiator(), responder())
    second, second_r = run(initiator(prev_h=first.h), responder(prev_h=first.h))
    assert second.keys == second_r.keys != first.keys
    assert second.h != first.h
    for h_i, h_r in ((first.h, ZEROS), (ZEROS, first.h), (first.h, second.h)):
        refused(
            lambda: run(initiator(prev_h=h_i), responder(prev_h=h_r)),  # noqa: B023
            "ML-KEM key does not authenticate",
        )


# --- Payloads ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "raw", "reason"),
    [
        (P1, bytes((1, 1, 0, 0)) + bytes(11) + b"\1", "reserved bytes of p1"),
        (P1, bytes((2, 3, 0, 0)) + bytes(12), "versions 2 to 3"),
        (P1, bytes((1, 1, 0x10, 0)) + bytes(12), "capability bits in p1"),
        (P2, vector("p2")[:10] + b"\1" + vector("p2")[11:], "reserved bytes of p2"),
        (P2, vector("p2")[:8] + b"\2\2" + vector("p2")[10:], "versions 2 to 2"),
        (P2, bytes(4) + vector("p2")[4:], "key id is 0"),
        (P3, vector("p3")[:8] + b"\1" + vector("p3")[9:], "reserved bytes of p3"),
        (P3, bytes(4) + vector("p3")[4:], "key id is 0"),
        (P3, vector("p3")[:6] + b"\4" + vector("p3")[7:], "p3 has capabilities"),
    ],
)
def test_a_sealed_payload_that_breaks_the_rules_is_refused(
    monkeypatch: pytest.MonkeyPatch, payload: Any, raw: bytes, reason: str
) -> None:
    monkeypatch.setattr(payload, "pack", lambda _: raw)
    refused(lambda: run(initiator(), responder()), reason)


def test_a_later_version_that_still_speaks_ours_is_accepted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(P1, "pack", lambda _: bytes((1, 7, 0, 0)) + bytes(12))
    one, other = run(initiator(), responder())
    assert one.keys == other.keys


def test_a_key_id_in_use_is_refused_by_either_side() -> None:
    seen: list[int] = []

    def in_use(key_id: int) -> bool:
        seen.append(key_id)
        return True

    refused(
        lambda: run(initiator(replace(BOTH_I, key_id_in_use=in_use)), responder()),
        "key id 0x11223344 is in use",
    )
    refused(
        lambda: run(initiator(), responder(replace(BOTH_R, key_id_in_use=in_use))),
        "key id 0x55667788 is in use",
    )
    assert seen == [OFFER_R.key_id, OFFER_I.key_id]


@pytest.mark.parametrize(
    ("caps_i", "caps_r", "cipher"),
    [
        (0, 0, "chacha20-poly1305"),
        (1, 0, "chacha20-poly1305"),
        (2, 3, "chacha20-poly1305"),
        (1, 1, "aegis-256"),
        (15, 15, "aegis-256"),
    ],
)
def test_aegis_is_used_when_both_sides_offer_it(caps_i: int, caps_r: int, cipher: str) -> None:
    one, other = run(
        initiator(offer=replace(OFFER_I, caps=caps_i)),
        responder(offer=replace(OFFER_R, caps=caps_r)),
    )
    assert one.cipher == other.cipher == cipher
    assert (one.local_caps, one.peer_caps) == (other.peer_caps, other.local_caps)
    assert (one.local_caps, one.peer_caps) == (caps_i, caps_r)


def test_a_required_cipher_refuses_a_peer_without_it() -> None:
    aegis_i, aegis_r = replace(OFFER_I, caps=1), replace(OFFER_R, caps=1)
    only_i = replace(BOTH_I, require_cipher="aegis-256")
    only_r = replace(BOTH_R, require_cipher="aegis-256")
    one, other = run(initiator(only_i, aegis_i), responder(only_r, aegis_r))
    assert one.cipher == other.cipher == "aegis-256"
    refused(lambda: run(initiator(only_i, aegis_i), responder()), r"encryption\.cipher wants")
    refused(lambda: run(initiator(), responder(only_r, aegis_r)), r"encryption\.cipher wants")
    plain = replace(BOTH_I, require_cipher="chacha20-poly1305")
    assert run(initiator(plain), responder(offer=aegis_r))[0].cipher == "chacha20-poly1305"


def test_a_certificate_seen_that_is_not_the_one_served_is_reported_by_both() -> None:
    one, other = run(initiator(), responder())
    assert one.tls_matches
    assert other.tls_matches
    one, other = run(initiator(offer=replace(OFFER_I, tls_cert_sha256=ZEROS)), responder())
    assert not one.tls_matches
    assert not other.tls_matches


# --- Our own mistakes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "offer", "prev_h"),
    [
        (Policy(ID_I, None, None), OFFER_I, ZEROS),
        (Policy(ID_I, PSK[:-1], None), OFFER_I, ZEROS),
        (Policy(ID_I, None, ID_R.public_key + b"\0"), OFFER_I, ZEROS),
        (replace(BOTH_I, require_cipher="rot13"), OFFER_I, ZEROS),
        (replace(BOTH_I, require_cipher="aegis-256"), OFFER_I, ZEROS),
        (replace(BOTH_I, require_cipher="chacha20-poly1305"), replace(OFFER_I, caps=1), ZEROS),
        (BOTH_I, replace(OFFER_I, key_id=0), ZEROS),
        (BOTH_I, replace(OFFER_I, key_id=1 << 32), ZEROS),
        (BOTH_I, replace(OFFER_I, caps=16), ZEROS),
        (BOTH_I, replace(OFFER_I, tap_mtu=70000), ZEROS),
        (BOTH_I, replace(OFFER_I, tls_cert_sha256=b""), ZEROS),
        (BOTH_I, OFFER_I, b""),
    ],
)
def test_what_cannot_work_is_refused_before_a_byte_is_sent(
    policy: Policy, offer: Offer, prev_h: bytes
) -> None:
    for machine in (Initiator, Responder):
        with pytest.raises(LocalProtocolError) as caught:
            machine(policy, offer, prev_h)
        assert PSK.hex()[:16] not in str(caught.value)


# --- What others can see ----------------------------------------------------------------------


def test_no_identity_and_no_secret_is_visible_on_the_wire() -> None:
    for policy_i, policy_r in ((BOTH_I, BOTH_R), (PSK_I, PSK_R)):
        one, other = initiator(policy_i), responder(policy_r)
        msg1 = one.first_message()
        msg2 = other.receive_msg1(msg1)
        wire = msg1 + msg2 + one.receive_msg2(msg2)
        for secret in (ID_I.public_key, ID_R.public_key, PSK, CERT, vector("id_i_seed")):
            for start in range(len(secret) - 7):
                assert secret[start : start + 8] not in wire


def test_msg1_is_the_same_whoever_sends_it() -> None:
    """So that it cannot tell initiators apart, not even to who knows the responder's key."""
    entropy = VectorEntropy("e_i")
    mine = initiator(BOTH_I, entropy=entropy).first_message()
    assert initiator(replace(BOTH_I, identity=ID_M), entropy=entropy).first_message() == mine


def test_two_handshakes_of_the_same_parties_share_no_ciphertext() -> None:
    first, second = initiator().first_message(), initiator().first_message()
    assert first[:8] == second[:8]
    for start in range(8, len(first) - 8):
        assert first[start : start + 8] not in second


def test_reprs_hold_no_secret() -> None:
    one, other = initiator(BOTH_I), responder(BOTH_R)
    run(one, other)
    keys = one.result.keys
    secrets = [PSK, vector("id_i_seed"), one.result.h, keys.wss_i2r, keys.wss_r2i]
    secrets += [keys.udp_i2r, keys.udp_r2i, keys.exporter]
    for thing in (one, other, BOTH_I, BOTH_R, OFFER_I, one.result, keys, one._state):
        for text in (repr(thing), str(thing)):
            for secret in secrets:
                assert secret.hex() not in text
                assert repr(secret)[2:-1] not in text


# --- Honest parties ---------------------------------------------------------------------------

seeds = st.binary(min_size=32, max_size=32)


def offers(caps: st.SearchStrategy[int]) -> st.SearchStrategy[Offer]:
    return st.builds(
        Offer,
        caps=caps,
        tap_mtu=st.integers(0, 65535),
        tls_cert_sha256=seeds,
        key_id=st.integers(1, 2**32 - 1),
    )


@settings(max_examples=150, deadline=None)
@given(
    seed_i=seeds,
    seed_r=seeds,
    psk=st.none() | seeds,
    pins=st.sampled_from([(True, True), (True, False), (False, True), (False, False)]),
    offer_i=offers(st.integers(0, 15)),
    offer_r=offers(st.integers(0, 15)),
    prev_h=seeds,
)
def test_two_honest_parties_always_agree(
    seed_i: bytes,
    seed_r: bytes,
    psk: bytes | None,
    pins: tuple[bool, bool],
    offer_i: Offer,
    offer_r: Offer,
    prev_h: bytes,
) -> None:
    if seed_i == seed_r:
        return
    if psk is None:
        pins = (True, True)
    id_i, id_r = Identity(seed_i), Identity(seed_r)
    policy_i = Policy(id_i, psk, id_r.public_key if pins[0] else None)
    policy_r = Policy(id_r, psk, id_i.public_key if pins[1] else None)
    one, other = run(Initiator(policy_i, offer_i, prev_h), Responder(policy_r, offer_r, prev_h))
    assert one.keys == other.keys
    assert one.h == other.h
    assert one.cipher == other.cipher
    assert one.peer == offer_r
    assert other.peer == offer_i
    assert one.peer_public_key == id_r.public_key
    assert other.peer_public_key == id_i.public_key
    assert one.local_key_id == other.remote_key_id == offer_i.key_id
    assert other.local_key_id == one.remote_key_id == offer_r.key_id
    assert one.tls_matches == other.tls_matches
    keys = one.keys
    drawn = {keys.wss_i2r, keys.wss_r2i, keys.udp_i2r, keys.udp_r2i, keys.exporter}
    assert len(drawn) == 5
    assert {len(key) for key in drawn} == {32}
