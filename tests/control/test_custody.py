"""The routes about keys and files: what is asked of the daemon, what is refused, what stays secret."""

from __future__ import annotations

import base64
import logging

import pytest

from shadowmesh.base import errors
from shadowmesh.control.custody_routes import CUSTODY_ROUTES, MAX_PIECE_BYTES
from shadowmesh.control.rights import Right
from tests.control.fake_control import HOME, FakeControl, make_app
from tests.control.fake_custody import KEY, SEALED
from tests.control.test_app import ask, assert_refused
from tests.control.test_openapi import validate

PASSPHRASE = "correct horse battery staple"
RECOVERY = "smr1-0123-4567"
DIGEST = "ab" * 32


@pytest.fixture
def control():
    """A daemon that is in a network."""
    found = FakeControl()
    found.joined = HOME
    return found


@pytest.fixture
def client(control):
    return make_app(control).test_client()


def test_a_backup_comes_sealed_and_says_what_it_lacks(client, control):
    control.kept.lacking = ("the recovery key",)
    body = {"passphrase": PASSPHRASE, "recovery_key": RECOVERY}
    answer = ask(client, "POST", "/network/backup", json=body).get_json()
    assert control.calls == [("back_up", PASSPHRASE, RECOVERY)]
    assert base64.b64decode(answer["backup"]) == SEALED
    assert answer["lacking"] == ["the recovery key"]
    validate(answer, "Backup")


def test_a_network_is_restored_from_a_file_that_was_sent_in_pieces(client, control):
    control.joined = None
    whole = bytes(range(256)) * 200
    for at in range(0, len(whole), MAX_PIECE_BYTES):
        data = base64.b64encode(whole[at : at + MAX_PIECE_BYTES]).decode()
        answer = ask(client, "POST", "/files", json={"offset": at, "data": data})
        assert answer.status_code == 200
        validate(answer.get_json(), "Received")
    assert control.kept.file == whole
    body = {"file": DIGEST, "passphrase": PASSPHRASE}
    answer = ask(client, "POST", "/network/restore", json=body).get_json()
    assert control.calls[-1] == ("restore", DIGEST, PASSPHRASE)
    assert answer["cancelled"] == 2
    validate(answer, "Restored")


TEXT = base64.b64encode(b"what is given").decode()


@pytest.mark.parametrize(
    ("method", "path", "body", "call", "schema"),
    [
        ("POST", "/network/authority/export", {"passphrase": PASSPHRASE},
         ("export_authority", PASSPHRASE), "ExportedKey"),
        ("POST", "/network/authority/release", {"key": KEY, "passphrase": PASSPHRASE},
         ("release_authority", KEY, PASSPHRASE), "NetworkAnswer"),
        ("POST", "/network/authority/import", {"key": KEY, "passphrase": PASSPHRASE},
         ("import_authority", KEY, PASSPHRASE), "NetworkAnswer"),
        ("POST", "/certificate/request", {}, ("request", "None"), "CertificateRequest"),
        ("POST", "/certificates", {"request": TEXT, "name": "nas"},
         ("sign", "what is given", "nas", "None", "None", "[]", "None"), "Signed"),
        ("POST", "/certificates", {"request": TEXT, "name": "nas", "roles": [], "tags": ["a"],
                                   "addresses": ["10.77.0.9"], "expires_s": 86400},
         ("sign", "what is given", "nas", "[]", "['a']", "['10.77.0.9']", "86400"), "Signed"),
        ("POST", "/certificates/bundle", {"certificate": TEXT}, ("bundle", "what is given"), "Signed"),
        ("POST", "/certificate", {"file": DIGEST}, ("install", "None", "False"), "Installation"),
        ("POST", "/certificate", {"file": DIGEST, "authority": "ab", "accept": True},
         ("install", "ab", "True"), "Installation"),
        ("GET", "/certificate", None, ("certificate",), "CertificateAnswer"),
        ("POST", "/certificate/renew", {}, ("renew",), "Renewal"),
        ("POST", "/peers/nas/reissue", {"new_name": "box", "at_once": True},
         ("reissue", "nas", "box", "-", "True"), "Renewal"),
        ("POST", "/peers/nas/reissue", {"add_tags": ["a"], "drop_tags": ["b"]},
         ("reissue", "nas", "None", "a", "-", "b", "False"), "Renewal"),
        ("POST", "/peers/nas/rekey", {}, ("rekey", "nas"), "Invited"),
        ("POST", "/network/lists", {"file": DIGEST}, ("take_list", DIGEST), "Removed"),
    ],
)  # fmt: skip
def test_what_is_asked_and_answered(client, control, method, path, body, call, schema):
    extra = {} if body is None else {"json": body}
    answer = ask(client, method, path, **extra)
    assert answer.status_code == 200, answer.get_json()
    assert control.calls[0] == call
    validate(answer.get_json(), schema)


def test_a_network_is_adopted_with_three_files(client, control):
    control.joined = None
    body = {"authority": TEXT, "certificate": TEXT, "revoked": TEXT, "subnets": ["10.77.0.0/24"]}
    answer = ask(client, "POST", "/network/adopt", json=body).get_json()
    given = "what is given"
    assert control.calls[0] == ("adopt", given, given, given, "10.77.0.0/24", "None")
    validate(answer, "Founded")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/certificates", {"request": TEXT}),
        ("/certificates", {"request": "?", "name": "nas"}),
        ("/certificates", {"request": TEXT, "name": "nas", "expires_s": 1}),
        ("/certificates", {"request": TEXT, "name": "nas", "roles": ["r"] * 33}),
        ("/certificate", {"accept": True}),
        ("/network/authority/release", {"key": "k" * 8193, "passphrase": PASSPHRASE}),
        ("/network/adopt", {"authority": TEXT, "certificate": TEXT, "revoked": TEXT}),
        ("/peers/nas/reissue", {"name": "box"}),
        ("/files", {"offset": 0}),
        ("/files", {"offset": -1, "data": ""}),
        ("/files", {"offset": 0, "data": "no base64"}),
        ("/files", {"offset": 0, "data": "A" * (MAX_PIECE_BYTES // 3 * 4 + 8)}),
        ("/network/backup", {}),
        ("/network/backup", {"passphrase": None}),
        ("/network/backup", {"passphrase": "p" * 1025}),
        ("/network/backup", {"passphrase": PASSPHRASE, "recovery_key": "r" * 129}),
        ("/network/restore", {"passphrase": PASSPHRASE}),
        ("/network/restore", {"passphrase": PASSPHRASE, "file": "AB" * 32}),
    ],
)
def test_what_cannot_be_is_refused_and_not_asked_for(client, control, path, body):
    answer = ask(client, "POST", path, json=body)
    assert_refused(answer, 400, "bad_request")
    assert control.calls == []
    assert PASSPHRASE not in answer.get_data(as_text=True)


def test_all_of_it_is_for_who_may_change_something():
    looks = {route.path for route in CUSTODY_ROUTES if route.right is not Right.CHANGE}
    assert looks == {"/certificate"}


@pytest.mark.parametrize("error", [errors.IssuerRefused("no"), ValueError("a bug")])
def test_no_passphrase_gets_into_the_log_or_an_answer(client, control, caplog, error):
    control.error = error
    body = {"passphrase": PASSPHRASE, "recovery_key": RECOVERY}
    with caplog.at_level(logging.DEBUG):
        answer = ask(client, "POST", "/network/backup", json=body)
    assert answer.status_code in (409, 500)
    for secret in (PASSPHRASE, RECOVERY):
        assert secret not in answer.get_data(as_text=True) + caplog.text
