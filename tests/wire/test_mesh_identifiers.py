"""Names and keys of a network: the vectors, then what each of them depends on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from shadowmesh.base.errors import LocalProtocolError
from shadowmesh.keys.identity import Identity
from shadowmesh.wire.mesh import identifiers

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "mesh.json").read_text()
)
MEMBER, JOIN = VECTORS["member"], VECTORS["join"]


def raw(part: dict[str, Any], name: str) -> bytes:
    return bytes.fromhex(part[name])


PROOF: dict[str, Any] = {
    "key": raw(JOIN, "k"),
    "network_id": raw(JOIN, "network_id"),
    "invitation_id": raw(JOIN, "invitation_id"),
    "id_i": Identity(raw(JOIN, "id_i_seed")).public_key,
    "id_r": Identity(raw(JOIN, "id_r_seed")).public_key,
    "h": raw(JOIN, "h"),
    "name": JOIN["name"],
}


def test_the_pre_shared_key_of_members_is_that_of_the_vector():
    psk = identifiers.member_psk(raw(MEMBER, "network_secret"), raw(MEMBER, "network_id"))
    assert psk == raw(MEMBER, "psk")


def test_the_key_of_an_invitation_is_that_of_the_vector():
    assert identifiers.invitation_key(raw(JOIN, "invitation_secret")) == raw(JOIN, "k")


def test_the_proof_of_a_joiner_is_that_of_the_vector():
    assert identifiers.join_proof(**PROOF) == raw(JOIN, "proof")


def test_of_the_network_id_the_first_16_bytes_count_in_a_proof():
    short = {**PROOF, "network_id": PROOF["network_id"][:16]}
    assert identifiers.join_proof(**short) == raw(JOIN, "proof")


@pytest.mark.parametrize("part", [part for part in PROOF if part != "name"])
def test_a_proof_is_for_one_invitation_one_joiner_one_relay_and_one_handshake(part: str):
    changed = bytes([PROOF[part][0] ^ 1]) + PROOF[part][1:]
    assert identifiers.join_proof(**{**PROOF, part: changed}) != raw(JOIN, "proof")


@pytest.mark.parametrize("name", ["", "laptoq", "laptop2", "l"])
def test_a_proof_is_for_one_name(name: str):
    assert identifiers.join_proof(**{**PROOF, "name": name}) != raw(JOIN, "proof")


def test_a_network_is_named_by_its_first_authority_and_a_member_by_its_key():
    assert identifiers.network_id(b"spki") == hashlib.sha256(b"spki").digest()
    key = PROOF["id_i"]
    assert identifiers.node_id(key) == hashlib.sha256(key).digest()[:8]


@pytest.mark.parametrize("part", [part for part in PROOF if part != "name"])
def test_a_part_of_another_size_is_our_own_error(part: str):
    for wrong in (b"", PROOF[part][:-1], PROOF[part] + b"\0"):
        with pytest.raises(LocalProtocolError, match="bytes, not"):
            identifiers.join_proof(**{**PROOF, part: wrong})


@pytest.mark.parametrize("name", ["x" * 64, "läptop"])
def test_a_name_that_is_no_label_is_our_own_error(name: str):
    with pytest.raises(LocalProtocolError, match="ASCII"):
        identifiers.join_proof(**{**PROOF, "name": name})


def test_secrets_and_keys_of_another_size_are_our_own_error():
    for call in (
        lambda: identifiers.member_psk(bytes(31), bytes(32)),
        lambda: identifiers.member_psk(bytes(32), bytes(16)),
        lambda: identifiers.invitation_key(bytes(32)),
        lambda: identifiers.node_id(bytes(33)),
    ):
        with pytest.raises(LocalProtocolError, match="bytes, not"):
            call()
