"""What a daemon with several peers shows: API, commands, metrics, and the dashboard in Chromium."""

from __future__ import annotations

import json
import re

import pytest

from shadowmesh.netlab import API_PORT, wait_until
from tests.control.test_openapi import validate
from tests.lab.browser import browser, find_chromium
from tests.lab.frames import Canaries, Wire, vlan_tag
from tests.lab.mesh import running_mesh
from tests.netns.test_dashboard import CONNECTED, PICTURES, SCREENS

pytestmark = pytest.mark.netns

OF_ONE = (
    "peer", "path", "path_reason", "paths", "cipher", "post_quantum", "tls_path", "rtt_ms", "mtu",
    "session", "link",
)  # fmt: skip


@pytest.fixture(scope="module")
def mesh(directory):
    """Three daemons; the pairs with h3 stay on the WebSocket path."""
    with running_mesh(directory, 3) as mesh:
        wait_until(lambda: mesh[1].peers()["h2"]["path"] == "udp", 15, "h2 is reached over UDP")
        yield mesh


def test_the_snapshot_sums_up_and_is_of_its_schema(mesh):
    told = mesh[1].status()
    validate(told, "Snapshot")
    assert told["state"] == "connected"
    assert [name for name in OF_ONE if told[name] is not None] == []
    assert told["peers"] == {"known": 2, "sessions": 2, "direct": 1, "relayed": 0}
    checks = {check["name"]: check for check in told["health"]}
    assert checks["peer"]["text"] == "connected to 2 of 2 peers"
    assert checks["peers"]["ok"]


def test_each_peer_is_told_by_itself(mesh):
    code, answer = mesh[1].api("GET", "/peers")
    assert code == 200
    validate(answer, "Peers")
    two, three = answer["peers"]
    assert (two["name"], two["path"], three["path"]) == ("h2", "udp", "wss")
    assert two["public_key"] == mesh[2].public_key
    assert two["address"] == mesh[2].host.peer_endpoint
    # Of several addresses the best: a better one may take over at any time.
    ways = mesh[1].api("GET", "/peers/h2")[1]["peer"]["paths"]
    assert two["endpoint"] in {way["address"] for way in ways if way["path"] == "udp"}
    assert two["tunnel_ips"] == [mesh[2].tunnel_ip]
    # the other side of the same session, which was dialled
    assert mesh[2].peers()["h1"]["address"] is None
    assert mesh[2].peers()["h1"]["session"]["initiator"] is False


def test_one_peer_in_full_and_a_name_that_nobody_has(mesh):
    code, answer = mesh[1].api("GET", "/peers/h2")
    assert code == 200
    validate(answer, "PeerAnswer")
    assert answer["peer"]["paths"][0]["active"]
    code, answer = mesh[1].api("GET", "/peers/h22")
    assert (code, answer["error"]["code"]) == (404, "no_such_peer")
    assert 'did you mean "h2"' in answer["error"]["message"]


def test_the_commands_speak_of_peers(mesh):
    table = mesh[1].cli("peers")
    assert table.returncode == 0
    assert table.stdout.splitlines()[-1] == "2 of 2 peers connected, 1 over UDP"
    assert "peers     2 of 2 connected" in mesh[1].cli("status").stdout
    assert mesh[1].cli("peers", "h3").returncode == 0
    pinged = json.loads(mesh[1].cli("--json", "ping", "h3", "-c", "1").stdout)
    assert pinged["summary"]["paths"] == {"wss": 1}
    assert mesh[1].cli("ping", "-c", "1").returncode == 2
    assert mesh[1].cli("wait", "--peer", "h2", "--for", "udp", "--timeout", "5s").returncode == 0
    explained = mesh[1].cli("explain", "h3")
    assert explained.returncode == 0
    assert "h3: connected to " in explained.stdout
    code, answer = mesh[1].api("GET", "/fdb")
    assert code == 200
    validate(answer, "Table")


def test_a_target_is_explained_by_the_peer_that_the_switch_has_it_behind(mesh):
    assert mesh[1].host.ping(mesh[2].tunnel_ip).complete
    told = mesh[1].cli("explain", mesh[2].tunnel_ip)
    assert told.returncode == 0
    assert re.search(
        r"answered with [0-9a-f:]+, behind h2, its own device, learned \d+s ago", told.stdout
    )
    with Wire(mesh[2].host, mesh[2].tap) as wire:
        source = bytes.fromhex("525400123456")
        wire.send(Canaries().frame(source, tags=vlan_tag(20)))
        wait_until(lambda: "52:54:00:12:34:56" in mesh[1].cli("fdb").stdout, 5, "it is learned")
    told = mesh[1].cli("explain", "52:54:00:12:34:56")
    assert told.returncode == 0
    assert re.search(r"52:54:00:12:34:56 is behind h2, learned \d+s ago, VLAN 20\n", told.stdout)
    one = mesh[1].api("GET", "/peers/h2")[1]["peer"]
    assert {(entry["mac"], entry["vlan"]) for entry in one["macs"]} >= {("52:54:00:12:34:56", 20)}
    assert one["counters"]["frames_in"] > 0
    told = mesh[2].cli("explain", "52:54:00:12:34:56")
    assert told.returncode == 5
    assert "is on this side of the tunnel" in told.stdout


def test_one_of_several_is_disconnected_and_let_in_again(mesh):
    before = mesh.sessions([mesh[1], mesh[3]])
    done = mesh[1].cli("disconnect", "h2")
    assert done.stdout.splitlines()[0] == "disconnected from h2"
    peers = mesh[1].peers()
    assert (peers["h2"]["state"], peers["h2"]["held"]) == ("disconnected", True)
    assert mesh[1].status()["state"] == "connected"
    assert mesh[1].cli("peers", "h2").returncode == 5
    done = mesh[1].cli("connect", "h2")
    assert (done.returncode, done.stdout.split(" over ")[0]) == (0, "connected to h2")
    assert mesh.sessions([mesh[1], mesh[3]]) == before, "the others have felt it"
    told = mesh[1].api("GET", "/events/recent")[1]["events"]
    assert {event["fields"].get("name") for event in told if event["kind"] == "session"} >= {"h2"}


def test_few_peers_have_metrics_of_their_own(mesh):
    code, text = mesh[1].api("GET", "/metrics")
    assert code == 200
    assert 'shadowmesh_peer_connected{peer="h2"} 1.0' in text
    assert 'shadowmesh_peers{which="connected"} 2.0' in text


@pytest.mark.skipif(find_chromium() is None, reason="needs chromium (Debian: chromium)")
def test_the_dashboard_has_a_table_of_peers(mesh, directory):
    PICTURES.mkdir(parents=True, exist_ok=True)
    wrapper = ["ip", "netns", "exec", mesh[1].host.namespace]
    with browser(directory / "profile", wrapper) as chromium:
        page = chromium.page()
        page.show_as(1280, 900)
        page.open(mesh[1].cli("dashboard").stdout.strip())
        page.wait_for(CONNECTED)
        page.wait_for("document.querySelectorAll('#peers tr').length === 2")
        rows = page.run("[...document.querySelectorAll('#peers tr')].map((row) => row.innerText)")
        assert "h2" in rows[0]
        assert "WSS" in rows[1]
        assert page.text("#peer") == "2 of 2 peers"
        assert page.run("document.querySelector('#rtt-card').hidden")
        assert page.run("!document.querySelector('.path').checkVisibility()")
        mesh[1].api("POST", "/disconnect", {"name": "h2"})
        page.wait_for("document.querySelector('#peers tr').innerText.includes('disconnected')")
        mesh[1].api("POST", "/connect", {"name": "h2"})
        page.wait_for("document.querySelector('#peer').textContent === '2 of 2 peers'")
        for name, (width, height, scheme, phone) in SCREENS.items():
            page.show_as(width, height, scheme=scheme, phone=phone)
            assert page.run("document.documentElement.scrollWidth <= window.innerWidth"), name
            page.screenshot(PICTURES / f"many-{name}.png")
        assert page.problems == []
        url = f"http://127.0.0.1:{API_PORT}/"
        own = (url, url.replace("http:", "ws:") + "events", "data:")
        assert [one for one in page.requests if not one.startswith(own)] == []
