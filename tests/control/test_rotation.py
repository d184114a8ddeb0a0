"""The routes that replace what a network rests on: who is asked what, and what stays secret."""

from __future__ import annotations

import logging

import pytest

from shadowmesh.base import errors
from shadowmesh.control.rotation_routes import MAX_RECOVERY_CHARS
from tests.control.fake_control import HOME, FakeControl, make_app
from tests.control.fake_rotation import AUTHORITY
from tests.control.test_app import ask, assert_refused
from tests.control.test_openapi import validate

KEY = "smr1-one-two-three"
WITH_KEY = ("/network/authority/replace", "/network/authority/drop")


@pytest.fixture
def control():
    """A daemon that is in a network with two authorities."""
    found = FakeControl()
    found.joined, found.rotating.trusted = HOME, 2
    return found


@pytest.fixture
def client(control):
    return make_app(control).test_client()


def test_another_secret_is_told_by_its_number(client, control):
    answer = ask(client, "POST", "/network/secret").get_json()
    assert answer == {"schema": 1, "epoch": 2}
    validate(answer, "Rotated")
    assert control.calls == [("rotate_secret",)]


def test_a_new_authority_is_told_with_what_it_has_changed(client, control):
    answer = ask(client, "POST", WITH_KEY[0], json={"recovery_key": KEY}).get_json()
    assert answer == {
        "schema": 1, "authority": AUTHORITY, "issued": 3, "trusted": 3, "cancelled": 1,
    }  # fmt: skip
    validate(answer, "Replaced")
    assert control.calls == [("replace_authority", KEY)]


def test_who_is_out_with_the_authority_before_is_told(client, control):
    control.rotating.out = ("nas",)
    answer = ask(client, "POST", WITH_KEY[1], json={"recovery_key": KEY}).get_json()
    assert answer == {"schema": 1, "authority": AUTHORITY, "dropped": 1, "out": ["nas"]}
    validate(answer, "Dropped")
    assert_refused(
        ask(client, "POST", WITH_KEY[1], json={"recovery_key": KEY}), 409, "issuer_refused"
    )


@pytest.mark.parametrize("path", ["/network/secret", *WITH_KEY])
def test_without_a_network_there_is_nothing_to_replace(client, control, path):
    control.joined = None
    body = {"recovery_key": KEY} if path in WITH_KEY else None
    assert_refused(ask(client, "POST", path, json=body or {}), 409, "no_network")


@pytest.mark.parametrize(
    ("path", "body"),
    [("/network/secret", {"epoch": 7}), ("/network/secret", {"recovery_key": KEY}),
     *((path, body) for path in WITH_KEY for body in (
         {}, {"recovery_key": None}, {"recovery_key": [KEY]}, {"recovery_key": 1},
         {"recovery_key": "k" * (MAX_RECOVERY_CHARS + 1)}, {"recovery_key": KEY, "yes": True}))],
)  # fmt: skip
def test_a_body_that_is_not_as_described_reaches_nobody(client, control, path, body):
    message = assert_refused(ask(client, "POST", path, json=body), 400, "bad_request")
    assert control.calls == []
    assert KEY not in message


@pytest.mark.parametrize("path", WITH_KEY)
def test_a_recovery_key_is_taken_from_a_body_only(client, control, path):
    assert_refused(ask(client, "POST", f"{path}?recovery_key={KEY}", json={}), 400, "bad_request")
    assert ask(client, "GET", path).status_code == 405
    assert control.calls == []


@pytest.mark.parametrize("path", WITH_KEY)
@pytest.mark.parametrize(
    "error",
    [errors.BadRequest("it is mistyped"), errors.IssuerRefused("it is of another network", "recovery"),
     RuntimeError("a bug")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_a_recovery_key_stands_in_no_error_and_in_no_log(client, control, caplog, path, error):
    control.error = error
    with caplog.at_level(logging.DEBUG):
        answer = ask(client, "POST", path, json={"recovery_key": KEY})
    assert answer.status_code >= 400
    assert KEY not in answer.get_data(as_text=True) + str(answer.headers)
    assert all(KEY not in str(vars(record)) for record in caplog.records)
