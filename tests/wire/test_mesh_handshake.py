"""Handshakes of members and joiners: vectors, changed bytes, and modes that do not mix."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from shadowmesh.base.errors import LocalProtocolError, RemoteProtocolError
from shadowmesh.keys.identity import Identity
from shadowmesh.wire.handshake import machines
from shadowmesh.wire.handshake.agreement import HandshakeResult, Offer, Policy
from shadowmesh.wire.handshake.machines import Initiator, Responder
from tests.wire.test_handshake import mutations, wrong_sizes

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "mesh.json").read_text()
)
NAMES = ("member", "join")
ZEROS = bytes(32)
OTHER_PSK = bytes(range(32))


class Vector:
    """One handshake of the vectors, and whoever takes part in it."""

    def __init__(self, name: str) -> None:
        self.values = VECTORS[name]
        self.i, self.r = Identity(self["id_i_seed"]), Identity(self["id_r_seed"])
        psk = self["psk"]
        if name == "member":
            self.policy_i = Policy(self.i, psk, self.r.public_key, member=True)
            self.policy_r = Policy(self.r, None, None, member=True, psks=(psk,))
        else:
            self.policy_i = Policy(self.i, None, self.r.public_key, join=True)
            self.policy_r = Policy(self.r, OTHER_PSK, None, member=True, join=True)
        self.offer_i = Offer(3, 1500, self["p3"][16:], 0x55667788)
        self.offer_r = Offer(3, 1500, self["p2"][16:], 0x11223344)

    def __getitem__(self, name: str) -> bytes:
        return bytes.fromhex(self.values[name])

    def x25519_private(self) -> X25519PrivateKey:
        return X25519PrivateKey.from_private_bytes(self[self.ephemeral])

    def mlkem_private(self) -> MLKEM768PrivateKey:
        return MLKEM768PrivateKey.from_seed_bytes(self["mlkem_seed"])

    def encapsulate(self, public_key: object) -> tuple[bytes, bytes]:
        return self["mlkem_ss"], self["mlkem_ct"]

    def entropy(self, ephemeral: str) -> Vector:
        self.ephemeral = ephemeral
        return self

    def initiator(self) -> Initiator:
        entropy = Vector(self.name).entropy("e_i")
        machine = Initiator(self.policy_i, self.offer_i, entropy=entropy)
        assert machine.first_message() == self["msg1"]
        return machine

    def responder(self, policy: Policy | None = None) -> Responder:
        entropy = Vector(self.name).entropy("e_r")
        return Responder(policy or self.policy_r, self.offer_r, entropy=entropy)

    def responder_after_msg1(self) -> Responder:
        machine = self.responder()
        assert machine.receive_msg1(self["msg1"]) == self["msg2"]
        return machine

    @property
    def name(self) -> str:
        return "member" if self.values["mode"] == 7 else "join"


MEMBER, JOIN = (Vector(name) for name in NAMES)
PAIR_R = Policy(MEMBER.r, MEMBER["psk"], MEMBER.i.public_key)
LIST_R = Policy(MEMBER.r, MEMBER["psk"], None, trusted=frozenset({MEMBER.i.public_key}))


def refused(call: Callable[[], object], reason: str | None = None) -> None:
    with pytest.raises(RemoteProtocolError, match=reason) as caught:
        call()
    assert caught.value.close_code == 4400
    assert MEMBER["psk"].hex() not in str(caught.value)


def run(
    policy_i: Policy, policy_r: Policy, *, prev_h: bytes = ZEROS, mode: int | None = None
) -> tuple[HandshakeResult, HandshakeResult]:
    one = Initiator(policy_i, MEMBER.offer_i, prev_h)
    other = Responder(policy_r, MEMBER.offer_r, prev_h, mode=mode)
    result = other.receive_msg3(one.receive_msg2(other.receive_msg1(one.first_message())))
    return one.result, result


# --- Vectors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", [MEMBER, JOIN], ids=NAMES)
def test_the_vector_is_reproduced_to_the_byte(vector: Vector):
    assert machines.LABEL.decode() == vector.values["label"]
    one, other = vector.initiator(), vector.responder_after_msg1()
    assert one.receive_msg2(vector["msg2"]) == vector["msg3"]
    result = other.receive_msg3(vector["msg3"])
    for side in (one.result, result):
        assert side.h == vector["h"]
        assert side.mode == vector.values["mode"]
        assert {
            "wss i2r": side.keys.wss_i2r.hex(),
            "wss r2i": side.keys.wss_r2i.hex(),
            "udp i2r": side.keys.udp_i2r.hex(),
            "udp r2i": side.keys.udp_r2i.hex(),
            "exporter": side.keys.exporter.hex(),
        } == vector.values["keys"]
    assert one.result.peer_public_key == vector.r.public_key
    assert result.peer_public_key == vector.i.public_key


@pytest.mark.parametrize("vector", [MEMBER, JOIN], ids=NAMES)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_every_changed_byte_is_refused(vector: Vector, number: int):
    start, verb = (
        (vector.responder, "receive_msg1"),
        (vector.initiator, "receive_msg2"),
        (vector.responder_after_msg1, "receive_msg3"),
    )[number - 1]
    good = vector[f"msg{number}"]
    for forged in (*mutations(good, 8), *wrong_sizes(good)):
        refused(lambda: getattr(start(), verb)(forged))  # noqa: B023


# --- Which modes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "accepted"),
    [
        (PAIR_R, {1, 3}),
        (replace(PAIR_R, psk=None), {2}),
        (LIST_R, {3}),
        (MEMBER.policy_r, {7}),
        (JOIN.policy_r, {7, 10}),
        (Policy(JOIN.r, None, None, join=True), {10}),
    ],
    ids=["pair", "pin", "list", "network", "network with an invitation", "joining alone"],
)
def test_a_responder_takes_the_mode_bytes_of_its_configuration_and_no_other(
    policy: Policy, accepted: set[int]
):
    for mode in range(256):
        forged = bytearray(MEMBER["msg1"])
        forged[5] = mode
        if mode == 7 and policy is MEMBER.policy_r:
            continue  # that message is genuine
        reason = "does not authenticate" if mode in accepted else "mode|one side|neither|whoever"
        refused(lambda: Responder(policy, MEMBER.offer_r).receive_msg1(bytes(forged)), reason)  # noqa: B023


@pytest.mark.parametrize("number", [2, 3])
def test_a_mode_does_not_change_between_messages(number: int):
    start, verb = (
        (MEMBER.initiator, "receive_msg2"),
        (MEMBER.responder_after_msg1, "receive_msg3"),
    )[number - 2]
    for mode in set(range(256)) - {7}:
        forged = bytearray(MEMBER[f"msg{number}"])
        forged[5] = mode
        refused(lambda: getattr(start(), verb)(bytes(forged)), f"msg{number} begins")  # noqa: B023


def test_pairs_and_networks_do_not_meet():
    pair_i = Policy(MEMBER.i, MEMBER["psk"], MEMBER.r.public_key)
    refused(lambda: run(pair_i, MEMBER.policy_r), "the peer dials a pair")
    refused(lambda: run(replace(pair_i, psk=None), JOIN.policy_r), "the peer dials a pair")
    refused(lambda: run(replace(pair_i, peer_public_key=None), MEMBER.policy_r), "dials a pair")
    refused(lambda: run(MEMBER.policy_i, PAIR_R), "we are in none")
    refused(lambda: run(MEMBER.policy_i, LIST_R), "we are in none")
    joiner = replace(JOIN.policy_i, peer_public_key=MEMBER.r.public_key)
    refused(
        lambda: run(joiner, replace(PAIR_R, psk=None, peer_public_key=JOIN.i.public_key)), "none"
    )
    refused(lambda: run(joiner, MEMBER.policy_r), "no invitation is open")


def test_a_network_secret_as_encryption_key_opens_nothing():
    secret = MEMBER["network_secret"]
    refused(
        lambda: run(replace(MEMBER.policy_i, psk=secret), MEMBER.policy_r),
        "does not authenticate: the peer has another network's secret",
    )


def test_whoever_proves_an_identity_is_taken_for_the_certificate_to_judge():
    stranger = Identity(bytes(range(32)))
    ours, theirs = run(replace(MEMBER.policy_i, identity=stranger), MEMBER.policy_r)
    assert ours.keys == theirs.keys
    assert theirs.peer_public_key == stranger.public_key
    assert ours.mode == theirs.mode == 7


def test_a_joiner_that_pins_another_relay_ends_at_the_gate():
    refused(lambda: run(JOIN.policy_i, replace(JOIN.policy_r, identity=MEMBER.r)), "another key")


def test_a_joiner_reaches_a_relay_whatever_the_secrets_of_the_network():
    one, other = run(JOIN.policy_i, JOIN.policy_r)
    assert one.keys == other.keys
    assert one.mode == other.mode == 10


# --- Two secrets ------------------------------------------------------------------------------


@pytest.mark.parametrize("psks", [(MEMBER["psk"], OTHER_PSK), (OTHER_PSK, MEMBER["psk"])])
def test_a_responder_tries_the_newest_secret_and_then_the_one_before(psks: tuple[bytes, ...]):
    policy = replace(MEMBER.policy_r, psks=psks)
    ours, theirs = run(MEMBER.policy_i, policy)
    assert ours.keys == theirs.keys
    machine = MEMBER.responder(policy)
    assert machine.receive_msg1(MEMBER["msg1"]) == MEMBER["msg2"]
    assert machine.receive_msg3(MEMBER["msg3"]).h == MEMBER["h"]


def test_a_secret_that_is_neither_of_the_two_ends_at_the_gate(monkeypatch: pytest.MonkeyPatch):
    policy = replace(MEMBER.policy_r, psks=(OTHER_PSK, bytes(range(1, 33))))
    msg1 = Initiator(MEMBER.policy_i, MEMBER.offer_i).first_message()
    machine = Responder(policy, MEMBER.offer_r)
    for name in ("X25519PublicKey", "MLKEM768PublicKey"):
        monkeypatch.setattr(machines, name, None)  # a public-key operation before the gate
    refused(lambda: machine.receive_msg1(msg1), "does not authenticate")
    assert not any(machine._state._ck)
    assert not any(machine._state._k)


# --- Rekeys -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [1, 2, 3, 10])
def test_a_rekey_keeps_the_mode_of_its_session(mode: int):
    prev_h = bytes(range(32))
    one, other = run(MEMBER.policy_i, MEMBER.policy_r, prev_h=prev_h, mode=7)
    assert one.keys == other.keys
    refused(
        lambda: run(MEMBER.policy_i, MEMBER.policy_r, prev_h=prev_h, mode=mode),
        f"a rekey in mode 7 of a session in {mode}",
    )


def test_a_pair_does_not_leave_its_pin_by_a_rekey():
    unpinned = Policy(MEMBER.i, MEMBER["psk"], None)
    run(unpinned, PAIR_R)
    refused(lambda: run(unpinned, PAIR_R, mode=3), "a rekey in mode 1 of a session in 3")


# --- Our own mistakes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "policy",
    [
        replace(MEMBER.policy_i, psk=None),
        replace(MEMBER.policy_i, peer_public_key=None),
        replace(MEMBER.policy_i, join=True),
        replace(MEMBER.policy_i, psks=(OTHER_PSK,)),
        replace(MEMBER.policy_i, psk=bytes(31)),
        replace(JOIN.policy_i, peer_public_key=None),
        replace(JOIN.policy_i, psk=OTHER_PSK),
        replace(PAIR_R, psks=(OTHER_PSK,)),
        replace(MEMBER.policy_i, trusted=frozenset()),
    ],
    ids=range(9),
)
def test_who_dials_a_network_has_what_its_mode_asks_for(policy: Policy):
    with pytest.raises(LocalProtocolError):
        Initiator(policy, MEMBER.offer_i)


@pytest.mark.parametrize(
    "policy",
    [
        replace(MEMBER.policy_r, psks=()),
        replace(MEMBER.policy_r, psks=(OTHER_PSK,) * 3),
        replace(MEMBER.policy_r, psks=(OTHER_PSK, bytes(31))),
        replace(MEMBER.policy_r, peer_public_key=MEMBER.i.public_key),
        replace(MEMBER.policy_r, trusted=frozenset()),
        Policy(JOIN.r, OTHER_PSK, None, join=True),
    ],
    ids=range(6),
)
def test_who_is_dialled_in_a_network_has_what_its_modes_ask_for(policy: Policy):
    with pytest.raises(LocalProtocolError):
        Responder(policy, MEMBER.offer_r)


def test_secrets_are_not_shown():
    shown = repr(replace(MEMBER.policy_r, psks=(b"a secret of thirty-two bytes ...",)))
    assert "thirty-two" not in shown
