"""The routes about networks: what is asked of the daemon, what is refused, what stays secret."""

from __future__ import annotations

import json
import logging

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shadowmesh.base import errors
from shadowmesh.control.routes import MAX_TOKEN_CHARS
from tests.control.fake_control import (
    HOME,
    INVITATION,
    MESH,
    OPEN,
    RECOVERY_KEY,
    USED,
    FakeControl,
    make_app,
)
from tests.control.test_app import ask, assert_refused
from tests.control.test_openapi import validate


@pytest.fixture
def control():
    """A daemon that is in a network."""
    found = FakeControl()
    found.joined, found.mesh = HOME, MESH
    return found


@pytest.fixture
def client(control):
    return make_app(control).test_client()


# --- What is asked and answered -----------------------------------------------------------------


def test_the_network_is_told_or_that_there_is_none(client, control):
    assert ask(client, path="/network").get_json() == {"schema": 1, "network": HOME.to_dict()}
    control.joined = None
    assert ask(client, path="/network").get_json() == {"schema": 1, "network": None}


def test_a_network_is_made_as_it_is_described(client, control):
    control.joined = None
    body = {"name": "home", "own_name": "server", "subnets": ["10.77.0.0/24", "fd42::/64"],
            "address": "vpn.example.com:443"}  # fmt: skip
    answer = ask(client, "POST", "/network", json=body).get_json()
    assert control.calls == [
        ("create_network", "home", "server", "10.77.0.0/24,fd42::/64", "vpn.example.com:443")
    ]
    assert answer["recovery_key"] == RECOVERY_KEY
    validate(answer, "Founded")


def test_of_a_new_network_only_the_name_must_be_said(client, control):
    control.joined = None
    assert ask(client, "POST", "/network", json={"name": "home"}).status_code == 200
    assert control.calls == [("create_network", "home", "None", "", "None")]


def test_an_invitation_is_made_as_it_is_described(client, control):
    body = {"name": "laptop", "expires_s": 600, "uses": 2, "roles": ["relay"], "tags": ["a", "b"],
            "addresses": ["10.77.0.9"]}  # fmt: skip
    answer = ask(client, "POST", "/invitations", json=body).get_json()
    assert control.calls == [("invite", "laptop", "600", "2", "relay", "a,b", "10.77.0.9")]
    assert answer["token"] == INVITATION
    validate(answer, "Invited")


def test_an_invitation_is_for_one_machine_and_an_hour_unless_it_is_said(client, control):
    assert ask(client, "POST", "/invitations").status_code == 200
    assert control.calls == [("invite", "None", "3600", "1", "", "", "")]


def test_the_invitations_are_told_without_their_texts(client):
    answer = ask(client, path="/invitations")
    assert answer.get_json()["invitations"] == [OPEN.to_dict(), USED.to_dict()]
    assert "token" not in answer.get_data(as_text=True)


@pytest.mark.parametrize(
    ("path", "asked", "cancelled"),
    [("/invitations", "None", 1), ("/invitations/0123456789abcdef", "0123456789abcdef", 1),
     ("/invitations/00000000000000aa", "00000000000000aa", 0)],
)  # fmt: skip
def test_invitations_are_cancelled_one_or_all(client, control, path, asked, cancelled):
    answer = ask(client, "DELETE", path)
    assert answer.get_json() == {"schema": 1, "cancelled": cancelled}
    assert control.calls == [("cancel_invitation", asked)]


@pytest.mark.parametrize("accept", [None, False, True])
def test_an_invitation_is_taken_only_when_that_is_said(client, control, accept):
    control.joined = None
    body = {"token": INVITATION} | ({} if accept is None else {"accept": accept})
    answer = ask(client, "POST", "/join", json=body).get_json()
    assert control.calls == [("join", INVITATION, "None", str(bool(accept)))]
    assert answer["taken"] is bool(accept)
    validate(answer, "Admission")


def test_a_machine_that_joins_may_say_where_it_is_dialled(client, control):
    control.joined = None
    body = {"token": INVITATION, "announce": ["nas.example:9001", "[2001:db8::1]:9001"]}
    assert ask(client, "POST", "/join", json=body).status_code == 200
    assert control.calls[0][-2:] == ("nas.example:9001", "[2001:db8::1]:9001")


def test_leaving_answers_as_the_network_does_then(client, control):
    assert ask(client, "POST", "/leave").get_json() == {"schema": 1, "network": None}
    assert control.calls == [("leave",)]


def test_a_member_is_put_out_by_its_name(client, control):
    answer = ask(client, "DELETE", "/peers/nas")
    assert answer.get_json() == {"schema": 1, "removed": ["nas"]}
    assert control.calls == [("remove_peer", "nas")]
    assert ask(client, "GET", "/peers/nas").status_code == 200


# --- What is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "extra"),
    [("POST", "/invitations", {}), ("GET", "/invitations", {}), ("DELETE", "/invitations", {}),
     ("DELETE", "/invitations/0123456789abcdef", {}), ("POST", "/leave", {}),
     ("DELETE", "/peers/nas", {})],
)  # fmt: skip
def test_without_a_network_most_routes_say_so(client, control, method, path, extra):
    control.joined = None
    assert_refused(ask(client, method, path, **extra), 409, "no_network")


@pytest.mark.parametrize(
    ("path", "body"), [("/network", {"name": "home"}), ("/join", {"token": INVITATION})]
)
def test_in_a_network_there_is_no_second_one(client, path, body):
    assert_refused(ask(client, "POST", path, json=body), 409, "in_network")


NAME = "n" * 64


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/network", {}),
        ("/network", {"name": None}),
        ("/network", {"name": 1}),
        ("/network", {"name": NAME}),
        ("/network", {"name": "home", "own_name": NAME}),
        ("/network", {"name": "home", "own_name": ["a"]}),
        ("/network", {"name": "home", "subnets": "10.0.0.0/24"}),
        ("/network", {"name": "home", "subnets": None}),
        ("/network", {"name": "home", "subnets": {"0": "10.0.0.0/24"}}),
        ("/network", {"name": "home", "subnets": [1]}),
        ("/network", {"name": "home", "subnets": ["a", "b", "c"]}),
        ("/network", {"name": "home", "subnets": ["1" * 44]}),
        ("/network", {"name": "home", "address": "vpn:x"}),
        ("/network", {"name": "home", "address": ["vpn:1"]}),
        ("/network", {"name": "home", "recovery_key": "mine"}),
        ("/invitations", {"name": NAME}),
        ("/invitations", {"expires_s": 59}),
        ("/invitations", {"expires_s": 31_536_001}),
        ("/invitations", {"expires_s": "3600"}),
        ("/invitations", {"expires_s": True}),
        ("/invitations", {"uses": 0}),
        ("/invitations", {"uses": 1001}),
        ("/invitations", {"uses": 1.5}),
        ("/invitations", {"roles": "relay"}),
        ("/invitations", {"roles": ["r" * 65]}),
        ("/invitations", {"tags": ["t"] * 33}),
        ("/invitations", {"tags": [["t"]]}),
        ("/invitations", {"tags": [None]}),
        ("/invitations", {"addresses": ["a", "b", "c"]}),
        ("/invitations", {"addresses": ["1" * 46]}),
        ("/invitations", {"id": "0123456789abcdef"}),
        ("/join", {}),
        ("/join", {"accept": True}),
        ("/join", {"token": None}),
        ("/join", {"token": [INVITATION]}),
        ("/join", {"token": "s" * (MAX_TOKEN_CHARS + 1)}),
        ("/join", {"token": INVITATION, "accept": "true"}),
        ("/join", {"token": INVITATION, "accept": 1}),
        ("/join", {"token": INVITATION, "accept": None}),
        ("/join", {"token": INVITATION, "name": NAME}),
        ("/join", {"token": INVITATION, "uses": 1}),
        ("/leave", {"name": "home"}),
    ],
)
def test_a_body_that_is_not_as_described_reaches_nobody(client, control, path, body):
    message = assert_refused(ask(client, "POST", path, json=body), 400, "bad_request")
    assert control.calls == []
    assert INVITATION not in message


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("DELETE", "/invitations/0123456789abcde", 400),
        ("DELETE", "/invitations/0123456789ABCDEF", 400),
        ("DELETE", "/invitations/0123456789abcdefa", 400),
        ("DELETE", "/invitations/0123456789abcdef%0a", 400),
        ("DELETE", "/invitations/..", 400),
        ("DELETE", "/invitations/", 404),
        ("DELETE", "/invitations/a/b", 404),
        ("DELETE", f"/peers/{NAME}", 400),
        ("DELETE", "/peers/", 404),
        ("DELETE", "/peers", 405),
        ("DELETE", "/network", 405),
        ("GET", "/join", 405),
        ("GET", f"/join?token={INVITATION}", 405),
        ("POST", f"/leave?token={INVITATION}", 400),
        ("DELETE", "/invitations?all=1", 400),
    ],
)
def test_a_path_or_query_that_is_not_as_described_reaches_nobody(
    client, control, method, path, status
):
    answer = ask(client, method, path)
    assert answer.status_code == status
    assert INVITATION not in answer.get_data(as_text=True)
    assert control.calls == []


def test_a_list_of_invitations_costs_what_it_is_long(client, control):
    control.invited = (OPEN,) * 6000
    answers = [ask(client, path="/invitations").status_code for _ in range(4)]
    assert (answers[0], answers[-1]) == (200, 429)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=70),
    lambda inner: st.lists(inner, max_size=40) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=50,
)
MEMBERS = ("name", "own_name", "subnets", "address", "expires_s", "uses", "roles", "tags",
           "addresses", "token", "accept")  # fmt: skip


@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    path=st.sampled_from(["/network", "/invitations", "/join"]),
    body=st.dictionaries(st.sampled_from(MEMBERS), JSON_VALUES, max_size=4),
)
def test_any_body_is_understood_or_refused_as_a_whole(path, body):
    control = FakeControl()
    control.joined = HOME if path == "/invitations" else None
    answer = ask(make_app(control).test_client(), "POST", path, data=json.dumps(body),
                 content_type="application/json")  # fmt: skip
    assert answer.status_code in (200, 400)
    assert (answer.status_code == 200) == bool(control.calls)


# --- What stays secret --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [errors.BadRequest("the invitation is mistyped"), errors.PeerRefused("it was used"),
     RuntimeError("a bug")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_an_invitation_stands_in_no_error_and_in_no_log(client, control, caplog, error):
    control.joined, control.error = None, error
    with caplog.at_level(logging.DEBUG):
        answer = ask(client, "POST", "/join", json={"token": INVITATION})
    assert answer.status_code >= 400
    assert INVITATION not in answer.get_data(as_text=True) + str(answer.headers)
    assert all(INVITATION not in str(vars(record)) for record in caplog.records)


def test_secrets_are_not_in_what_a_log_would_show_of_an_answer(client, control):
    invited = control.invite("a", 60, 1, (), (), ())
    control.joined = None
    founded = control.create_network("a", None, (), None)
    assert INVITATION not in repr(invited)
    assert RECOVERY_KEY not in repr(founded)
