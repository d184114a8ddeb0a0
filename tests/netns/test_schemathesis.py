"""Real daemons against requests that schemathesis makes out of their OpenAPI document.

Deterministic, and bounded by the number of examples. Both runs stay below the API's rate limits,
so that a 429 would be a finding. What a route does besides answering is tested elsewhere.
"""

from __future__ import annotations

import json

import pytest

from shadowmesh.control.guard import AUTHORISED_RATE, FAILED_RATE
from shadowmesh.control.rights import Right
from shadowmesh.control.routes import NEEDED
from shadowmesh.control.schema import FORMATS
from shadowmesh.netlab import API_PORT
from shadowmesh.netlab.daemon import program
from tests.lab.pair import running_pair

pytestmark = pytest.mark.netns

#: what the formats mean, which no JSON Schema can say
HOOKS = """
import base64

import schemathesis
from hypothesis import strategies as st


def is_one_host(address):
    return not (address.is_multicast or address.is_unspecified or str(address) == "255.255.255.255")


label = st.from_regex(r"[a-z][a-z0-9-]{0,20}[a-z0-9]", fullmatch=True)
v4 = st.ip_addresses(v=4).filter(is_one_host).map(str)
v6 = st.ip_addresses(v=6, network="2001:db8::/32").map(str)
mac = st.binary(min_size=5, max_size=5).map(lambda tail: "02:" + tail.hex(":"))
host = st.one_of(v4, v6.map("[{}]".format), st.lists(label, min_size=1, max_size=3).map(".".join))
schemathesis.openapi.format("host:port", st.builds("{}:{}".format, host, st.integers(1, 65535)))
schemathesis.openapi.format("mac-or-ip", st.one_of(mac, v4, v6))
schemathesis.openapi.format("invitation-id", st.binary(min_size=8, max_size=8).map(bytes.hex))
schemathesis.openapi.format("sha-256", st.binary(min_size=32, max_size=32).map(bytes.hex))
schemathesis.openapi.format("byte", st.binary(max_size=60).map(lambda data: base64.b64encode(data).decode()))
"""

#: 502, 503 and 504 say that the peer or the device failed, not the daemon; 426 is what a plain
#: request for the WebSocket gets
CONFIGURATION = """
[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 502, 503, 504]
positive_data_acceptance.expected-statuses = ["2xx", 401, 404, 409, 426, 502, 503, 504]
"""

#: after these the daemon begins anew, and is one of a network
BEGINS_ANEW = ("/network", "/network/adopt", "/network/restore", "/join", "/leave", "/certificate")

#: what a route that answers at once answers with; any other is a stream, which lasts
AT_ONCE = {"application/json", "text/html", "text/plain"}


@pytest.fixture(scope="module")
def pair(directory):
    with running_pair(directory, {"nat.enabled": False}) as pair:
        yield pair


@pytest.fixture(scope="module")
def document(pair, directory):
    (directory / "hooks.py").write_text(HOOKS)
    (directory / "schemathesis.toml").write_text(CONFIGURATION)
    code, document = pair.left.api("GET", "/openapi.json")
    assert code == 200
    text = json.dumps(document)
    (directory / "openapi.json").write_text(json.dumps(json.loads(text, object_hook=_easier)))
    return document


def _easier(schema):
    """Without the length of what has a format: texts of both are looked for, for 12 s."""
    if "format" in schema and schema["format"] in FORMATS:
        return {key: value for key, value in schema.items() if key != "maxLength"}
    return schema


def operations(document):
    return [
        (method.upper(), path, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
    ]


def streams(document):
    """Paths of routes that answer for as long as they are listened to."""
    return [
        path
        for _, path, operation in operations(document)
        for kind in operation["responses"].get("200", {}).get("content", {})
        if kind not in AT_ONCE
    ]


def assert_nothing_found(daemon, directory, *options, per_second):
    done = daemon.host.run(
        "env", f"--chdir={directory}", f"HOME={directory}", f"SCHEMATHESIS_HOOKS={directory / 'hooks.py'}",
        program("schemathesis"), "--config-file", str(directory / "schemathesis.toml"),
        "run", str(directory / "openapi.json"), "--url", f"http://127.0.0.1:{API_PORT}",
        "--checks", "all", "--rate-limit", f"{per_second}/s", "--request-timeout", "15",
        "--generation-deterministic", "--continue-on-failure", "--no-color", "--warnings", "off",
        *options, check=False, timeout_s=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    # and the daemon has lived through it
    assert daemon.api("GET", "/health/live", authorize=False)[0] == 200
    assert "request failed" not in daemon.log()
    return done.stdout


def test_every_format_of_the_api_has_a_strategy():
    assert {name for name in FORMATS if f'"{name}"' not in HOOKS} == set()


def test_nothing_is_found_with_the_token(pair, document, directory):
    excluded = [
        word for path in (*streams(document), *BEGINS_ANEW) for word in ("--exclude-path", path)
    ]
    print(assert_nothing_found(
        pair.left, directory, "--max-examples", "12", *excluded,
        "-H", f"Authorization: Bearer {pair.left.token()}",
        per_second=int(AUTHORISED_RATE[0] * 0.8),
    ))  # fmt: skip


def test_nothing_is_found_without_the_token(pair, document, directory):
    before = pair.right.status()["since"]
    print(
        assert_nothing_found(
            pair.right, directory, "--max-examples", "4", per_second=int(FAILED_RATE[0] * 0.8)
        )
    )
    assert pair.right.status()["since"] == before, "somebody without the token changed the state"


def test_every_route_but_the_open_ones_wants_the_token(pair, document):
    found = operations(document)
    assert len(found) >= 12
    for method, path, operation in found:
        assert {"401", "429"} <= operation["responses"].keys()
        code, answer = pair.right.api(method, path, authorize=False)
        if NEEDED[method, path] is Right.NONE:
            assert code in {200, 503}, path
        else:
            assert (code, answer["error"]["code"]) == (401, "unauthorized"), path
