"""The OpenAPI document says what the API does, no more and no less."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys

import jsonschema_rs
import pytest

from shadowmesh.base.errors import BadRequest
from shadowmesh.control import openapi, routes, schema
from shadowmesh.insight import events, status
from tests.control.fake_control import (
    AT_HOME,
    CONNECTED,
    DISCONNECTED,
    FDB,
    HOME,
    MANY,
    MESH,
    TOKEN,
    FakeControl,
    make_app,
)

DOCUMENT = openapi.document()
CLOSED = openapi.document(closed=True)
AUTHORISATION = {"Authorization": f"Bearer {TOKEN}"}
BASE_URL = "http://127.0.0.1:9090"

NAT = status.Nat("symmetric", "198.51.100.4:9001", 1.0, "unknown", "unknown", "two ports")
FULL = dataclasses.replace(
    CONNECTED,
    nat=NAT,
    last_error="no route",
    last_error_at=1.0,
    next_retry_at=2.0,
    refused=status.Refused("192.0.2.9:5", "not the pinned key", 1.5),
    certificate=status.Certificate(3.0, "00" * 32),
    capture=status.Capture(4.0, 96, 12, 3),
    paths=(
        status.Path("udp", "192.0.2.1:9001", "host", True, True, 0.5, 0.0, 1400, "192.0.2.2:9"),
        status.Path("wss", "192.0.2.1:9001"),
    ),
    network=AT_HOME,
)


def validate(value, name, document=CLOSED):
    """Check a value against a schema of the document; raise what is wrong."""
    described = {**document, "$ref": f"#/components/schemas/{name}"}
    jsonschema_rs.validator_for(described, validate_formats=True).validate(value)


def ask(client, method, path, **extra):
    headers = {**AUTHORISATION, **extra.pop("headers", {})}
    return client.open(path, method=method, base_url=BASE_URL, headers=headers, **extra)


@pytest.fixture
def control():
    return FakeControl()


@pytest.fixture
def client(control):
    return make_app(control).test_client()


def test_the_document_is_what_the_route_answers(client):
    assert ask(client, "GET", "/openapi.json").get_json() == DOCUMENT
    assert client.get("/openapi.json", base_url=BASE_URL).status_code == 401


def test_the_document_is_openapi_3_1():
    assert DOCUMENT["openapi"] == "3.1.0"
    assert {"title", "version", "license"} <= DOCUMENT["info"].keys()
    operations = [one for path in DOCUMENT["paths"].values() for one in path.values()]
    assert len({one["operationId"] for one in operations}) == len(operations)
    for reference in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(DOCUMENT)):
        assert reference in DOCUMENT["components"]["schemas"]


def test_every_route_of_the_application_is_described_and_no_other():
    application = make_app(FakeControl())
    served = {
        (rule.rule.replace("<", "{").replace(">", "}"), method.lower())
        for rule in application.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
    }
    described = {(path, method) for path, item in DOCUMENT["paths"].items() for method in item}
    assert served == described
    assert len(described) >= 11


@pytest.mark.parametrize("route", routes.ROUTES, ids=lambda route: route.path)
def test_a_route_asks_for_the_token_as_it_is_described(client, route):
    operation = DOCUMENT["paths"][route.path][route.method.lower()]
    answer = client.open(route.path, method=route.method, base_url=BASE_URL)
    assert (answer.status_code == 401) == ({} not in operation["security"])
    assert "401" in operation["responses"]


# --- Answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("snapshot", [FULL, CONNECTED, DISCONNECTED, MANY])
def test_every_field_of_a_snapshot_is_described(snapshot):
    validate(snapshot.to_dict(), "Snapshot")


def test_a_field_that_is_not_described_would_be_found():
    answer = FULL.to_dict()
    for place in (answer, answer["nat"], answer["paths"][0], answer["health"][0]):
        place["surprise"] = 1
        with pytest.raises(jsonschema_rs.ValidationError, match="surprise"):
            validate(answer, "Snapshot")
        validate(answer, "Snapshot", DOCUMENT)  # a client has to live with it
        del place["surprise"]
    for name in list(answer):
        value = answer.pop(name)
        with pytest.raises(jsonschema_rs.ValidationError, match=name):
            validate(answer, "Snapshot")
        answer[name] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [("state", "asleep"), ("since", "yesterday"), ("reconnects", "1"), ("path", "tcp"),
     ("post_quantum", 1), ("tap", None), ("paths", {})],
)  # fmt: skip
def test_a_value_of_the_wrong_kind_would_be_found(path, value):
    with pytest.raises(jsonschema_rs.ValidationError):
        validate({**FULL.to_dict(), path: value}, "Snapshot")


def described(operation, http_status):
    content = operation["responses"][str(http_status)]["content"]["application/json"]["schema"]
    return jsonschema_rs.validator_for({**CLOSED, **content}, validate_formats=True)


@pytest.mark.parametrize(
    ("method", "path", "extra", "http_status"),
    [
        ("GET", "/status", {}, 200),
        ("POST", "/connect", {"json": {"peer": "a.example:1"}}, 200),
        ("POST", "/connect", {"json": {"peer": "nonsense:"}}, 400),
        ("POST", "/connect", {"data": b"x"}, 415),
        ("POST", "/connect", {"data": b" " * 70000, "content_type": "application/json"}, 413),
        ("POST", "/connect", {"json": {"name": "nas"}}, 200),
        ("POST", "/connect", {"json": {"name": "n" * 64}}, 400),
        ("POST", "/disconnect", {}, 200),
        ("POST", "/disconnect", {"json": {"name": "nas"}}, 200),
        ("POST", "/ping", {"json": {"name": "nas", "count": 2}}, 200),
        ("POST", "/ping", {"json": {"name": 1}}, 400),
        ("GET", "/peers", {}, 200),
        ("GET", "/peers/nas", {}, 200),
        ("GET", "/peers/nobody", {}, 404),
        ("GET", f"/peers/{'n' * 64}", {}, 400),
        ("GET", "/fdb", {}, 200),
        ("GET", "/network", {}, 200),
        ("POST", "/network", {"json": {"name": "home"}}, 409),
        ("POST", "/network", {}, 400),
        ("POST", "/invitations", {}, 200),
        ("POST", "/invitations", {"json": {"name": "nas", "tags": ["a", "b"], "uses": 2}}, 200),
        ("POST", "/invitations", {"json": {"uses": 0}}, 400),
        ("GET", "/invitations", {}, 200),
        ("DELETE", "/invitations", {}, 200),
        ("DELETE", "/invitations/0123456789abcdef", {}, 200),
        ("DELETE", "/invitations/0123456789ABCDEF", {}, 400),
        ("DELETE", "/peers/nas", {}, 200),
        ("DELETE", "/peers/nobody", {}, 404),
        ("POST", "/join", {"json": {"token": "sm1-x"}}, 409),
        ("POST", "/join", {"json": {"name": "nas"}}, 400),
        ("POST", "/leave", {}, 200),
        ("GET", "/explain?peer=nas", {}, 200),
        ("GET", "/explain?peer=nobody", {}, 404),
        ("GET", "/health", {}, 200),
        ("GET", "/health/live", {}, 200),
        ("GET", "/health/ready", {}, 200),
        ("GET", "/events", {}, 426),
        ("GET", "/events/recent", {}, 200),
        ("GET", "/events/recent?limit=0", {}, 400),
        ("GET", "/explain", {}, 200),
        ("GET", "/history", {}, 200),
        ("GET", "/configuration", {}, 200),
        ("GET", "/explain?target=10.0.0.2", {}, 200),
        ("GET", "/explain?target=tap0", {}, 400),
        ("GET", "/metrics", {}, 404),
        ("GET", "/status", {"headers": {"Authorization": "Bearer x"}}, 401),
        ("GET", "/status", {"headers": {"Host": "evil"}}, 403),
        ("GET", "/health/live", {"headers": {"Origin": "http://evil"}}, 403),
    ],
)
def test_an_answer_is_of_the_schema_that_the_document_gives_it(
    client, control, method, path, extra, http_status
):
    control.snapshot, control.mesh, control.fdb, control.joined = FULL, MESH, FDB, HOME
    answer = ask(client, method, path, **extra)
    assert answer.status_code == http_status
    known = re.sub("^/peers/.*", "/peers/{name}", path.partition("?")[0])
    known = re.sub("^/invitations/.*", "/invitations/{id}", known)
    operation = CLOSED["paths"][known][method.lower()]
    described(operation, http_status).validate(answer.get_json())


@pytest.mark.parametrize("authorised", [True, False])
def test_failing_health_is_of_its_schema(client, control, authorised):
    control.report = status.Health([status.Check("tap", False, text="gone", code="tap_gone")])
    for path in ("/health", "/health/ready"):
        headers = AUTHORISATION if authorised else {}
        answer = client.get(path, base_url=BASE_URL, headers=headers)
        assert answer.status_code == 503
        described(CLOSED["paths"][path]["get"], 503).validate(answer.get_json())


def test_what_the_feed_sends_is_of_its_schema():
    recorder = events.FlightRecorder()
    recorder.record("path", "path changed", before="wss", after=["x", 1, None])
    event = recorder.recent()[0].to_dict()
    validate({"type": "snapshot", "snapshot": FULL.to_dict()}, "FeedMessage")
    validate({"type": "events", "events": [event]}, "FeedMessage")
    validate({"type": "events", "events": []}, "FeedMessage")
    with pytest.raises(jsonschema_rs.ValidationError):
        validate({"type": "events", "events": [{**event, "kind": "gossip"}]}, "FeedMessage")


# --- What is asked ----------------------------------------------------------------------------


def test_the_recent_events_come_in_order_and_as_many_as_asked(control):
    recorder = events.FlightRecorder()
    client = make_app(control, recorder=recorder).test_client()
    for number in range(5):
        recorder.record("path", f"message {number}")
    answer = ask(client, "GET", "/events/recent").get_json()
    assert [event["number"] for event in answer["events"]] == [1, 2, 3, 4, 5]
    answer = ask(client, "GET", "/events/recent?limit=2").get_json()
    assert [event["number"] for event in answer["events"]] == [4, 5]
    answer = ask(client, "GET", "/events/recent?limit=3&after=4").get_json()
    assert [event["number"] for event in answer["events"]] == [5]


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=1001", "limit=-1", "limit=", "limit=1.0", "limit=x", "limit=1&limit=2",
     "limit=01", "limit=%2B1", "limit=1e2", "after=-1", "after=9007199254740992", "lmit=1", "=",
     "limit=" + "9" * 5000, "limit=\u0661"],
)  # fmt: skip
def test_a_query_that_is_not_described_is_refused(client, query):
    answer = ask(client, "GET", f"/events/recent?{query}")
    assert answer.status_code == 400
    assert answer.get_json()["error"]["code"] == "bad_request"


@pytest.mark.parametrize("route", routes.ROUTES, ids=lambda route: route.path)
def test_no_route_takes_a_parameter_that_it_does_not_describe(client, control, route):
    answer = ask(client, route.method, f"{route.path}?surprise=1")
    assert answer.status_code == 400
    assert "surprise" in answer.get_json()["error"]["message"]
    assert control.calls == []


TEXTS = {"type": "array", "items": {"type": "string", "maxLength": 2}, "maxItems": 2}


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (1, {"type": "string"}),
        (True, {"type": "integer"}),
        (None, {"type": "string"}),
        ("1", {"type": "integer"}),
        (1.0, {"type": "integer"}),
        (0, {"type": "integer", "minimum": 1}),
        (11, {"type": "integer", "maximum": 10}),
        ("abc", {"type": "string", "maxLength": 2}),
        ("c", {"type": "string", "enum": ["a", "b"]}),
        ("nonsense:", {"type": ["string", "null"], "format": "host:port"}),
        ("a", TEXTS),
        ({"0": "a"}, TEXTS),
        (None, TEXTS),
        (["a", 1], TEXTS),
        (["a", None], TEXTS),
        (["a", ["b"]], TEXTS),
        (["abc"], TEXTS),
        (["a", "b", "c"], TEXTS),
        (["a"] * 20_000, TEXTS),
        ("0123456789abcdef\n", {"type": "string", "format": "invitation-id"}),
    ],
)
def test_the_check_refuses_what_does_not_fit(value, wanted):
    with pytest.raises(BadRequest):
        schema.check("value", value, wanted)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (None, {"type": ["string", "null"], "format": "host:port"}),
        ("a:1", {"type": ["string", "null"], "format": "host:port"}),
        (1, {"type": "integer", "minimum": 1, "maximum": 1}),
        ("ab", {"type": "string", "maxLength": 2}),
        (False, {"type": "boolean"}),
        ([], TEXTS),
        (["ab", ""], TEXTS),
        ("0123456789abcdef", {"type": "string", "format": "invitation-id"}),
    ],
)
def test_the_check_accepts_what_fits(value, wanted):
    schema.check("value", value, wanted)


def test_the_longest_peer_fits():
    name = ".".join(["a" * 63] * 3 + ["b" * 61])
    assert len(name) == 253
    schema.check("peer", f"{name}:65535", routes._PEER.schema)


@pytest.mark.parametrize(("given", "taken"), [(5.0, 5), (5, 5), (1e1, 10)])
def test_a_number_without_a_fraction_is_an_integer_as_in_json_schema(given, taken):
    (route,) = (route for route in routes.ROUTES if route.path == "/ping")
    count = schema.check_members({"count": given}, route.body)["count"]
    assert (count, type(count)) == (taken, int)


@pytest.mark.parametrize("given", [5.5, 11.0, 0.0, 1e300, float("inf"), float("nan")])
def test_a_number_with_a_fraction_or_out_of_bounds_is_none_that_fits(given):
    (route,) = (route for route in routes.ROUTES if route.path == "/ping")
    with pytest.raises(BadRequest, match="count"):
        schema.check_members({"count": given}, route.body)


def test_what_varies_in_a_path_is_described():
    for route in routes.ROUTES:
        assert re.findall(r"{(\w+)}", route.path) == [value.name for value in route.within]


@pytest.mark.parametrize(
    "name", ["..", "%2e%2e", "a%2Fb", "%00", "nas%20", "N", "\u00e4", "a" * 63]
)
def test_a_name_that_is_none_is_no_route_or_no_peer(client, control, name):
    control.mesh = MESH
    answer = ask(client, "GET", f"/peers/{name}")
    assert answer.status_code == 404
    assert answer.get_json()["error"]["code"] in {"no_such_peer", "not_found"}


def test_what_does_not_fit_in_an_array_is_named_by_its_place():
    with pytest.raises(BadRequest, match=r"^value\[1\] is longer than 2 characters$"):
        schema.check("value", ["a", "secret"], TEXTS)


def test_what_a_body_must_have_is_missed(client, control):
    answer = ask(client, "POST", "/join", json={})
    assert answer.get_json()["error"] == {"code": "bad_request", "message": "token is missing"}
    assert control.calls == []
    body = DOCUMENT["paths"]["/join"]["post"]["requestBody"]
    assert body["required"] is True
    assert body["content"]["application/json"]["schema"]["required"] == ["token"]
    assert DOCUMENT["paths"]["/connect"]["post"]["requestBody"]["required"] is False


def every_schema():
    for route in routes.ROUTES:
        for value in (*route.within, *route.query, *(route.body or ())):
            yield value.schema
            if value.schema["type"] == "array":
                yield value.schema["items"]


def test_every_keyword_of_a_request_schema_is_one_that_the_check_knows():
    known = {"type", "enum", "minimum", "maximum", "maxLength", "format", "items", "maxItems"}
    for one in every_schema():
        assert one.keys() <= known


def test_every_text_number_and_array_of_a_request_has_its_bounds():
    bounds = {"string": {"maxLength"}, "integer": {"minimum", "maximum"},
              "array": {"items", "maxItems"}, "boolean": set()}  # fmt: skip
    for one in every_schema():
        kind = one["type"] if isinstance(one["type"], str) else one["type"][0]
        assert bounds[kind] <= one.keys()


def test_the_daemon_does_not_load_the_document_before_it_is_asked():
    code = (
        "import sys, shadowmesh.service.daemon, shadowmesh.service.http;"
        "sys.exit(any(name in sys.modules for name in"
        " ('shadowmesh.control.openapi', 'shadowmesh.control.dashboard', 'jsonschema_rs')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
