"""Members that are removed while frames cross the network, and those that are not who they say."""

from __future__ import annotations

import contextlib
import http
import json
import shutil
import time

import pytest

from shadowmesh.netlab import wait_until
from tests.lab import proxies
from tests.lab.frames import Canaries, Collector, Stream, Wire
from tests.lab.network import running_network
from tests.lab.pair import socket_drops

pytestmark = pytest.mark.netns

#: mesh, section 3
OUT_WITHIN_S = 5.0


@pytest.fixture
def network(directory, request):
    with running_network(directory / request.node.name) as network:
        network.found()
        yield network


def announce(network, name):
    """Let a member be dialled by others."""
    daemon = network[name]
    daemon.terminate()
    path = daemon.state_dir / "network" / "network.json"
    facts = json.loads(path.read_text())
    facts["announce"] = [daemon.host.peer_endpoint]
    path.write_text(json.dumps(facts))
    daemon.start()


def has_session(daemon, name):
    peer = daemon.peers().get(name)
    return peer is not None and peer["state"] == "connected"


@contextlib.contextmanager
def stream(source, sink, *, per_second=400):
    """Frames from one member to another while the block runs; gives who counts them."""
    canaries = Canaries()
    with (
        Wire(source.host, source.tap) as out,
        Wire(sink.host, sink.tap) as into,
        Collector(into, canaries) as collector,
    ):
        with Stream(out, canaries, into.address, per_second=per_second, size=900):
            wait_until(lambda: collector.arrived, 15, "the first frames")
            yield collector
        with contextlib.suppress(TimeoutError):  # who was removed loses most
            wait_until(lambda: not collector.lost, 1, "all frames")


def lossless(collector, sink, before):
    """All that was sent arrives, but what a full socket of a busy machine has cost."""
    collector.assert_sound()
    assert collector.lost <= socket_drops(sink) - before, collector.lost


@pytest.mark.parametrize("hub_ends", [False, True], ids=["the hub goes on", "the hub ends at once"])
def test_a_member_that_is_removed_under_load_is_out_everywhere_and_others_feel_nothing(
    network, hub_ends
):
    token = network.invite(name="bad")
    old = network.join("bad", token)
    for name in ("witness", "other"):
        network.join(name)
    announce(network, "witness")
    hub, witness, other = network["hub"], network["witness"], network["other"]
    for name in ("bad", "other"):
        network.await_session(name, "witness")
        network.await_session(name, "hub")
    kept = old.state_dir.with_name("kept")
    shutil.copytree(old.state_dir, kept, ignore=shutil.ignore_patterns("*.sock"))
    before = socket_drops(witness)
    with (
        stream(old, witness) as theirs,
        stream(other, witness) as ours,
    ):
        before_count = len(theirs.arrived)
        wait_until(lambda: len(theirs.arrived) > before_count + 100, 15, "a stream")
        since = other.peers()["witness"]["session"]["established_at"]
        began = time.monotonic()
        network.remove("bad")
        if hub_ends:
            hub.kill()
        else:
            wait_until(lambda: "bad" not in hub.peers(), OUT_WITHIN_S, "it is out at the hub")
        wait_until(lambda: "bad" not in witness.peers(), OUT_WITHIN_S, "out at the witness")
        wait_until(lambda: "bad" not in other.peers(), OUT_WITHIN_S, "out at the other one")
        took_s = time.monotonic() - began
        arrived = len(theirs.arrived)
        time.sleep(1)
        assert len(theirs.arrived) <= arrived + 1
        assert other.peers()["witness"]["session"]["established_at"] == since
    assert took_s < OUT_WITHIN_S
    print(f"out everywhere after {took_s:.2f} s")
    lossless(ours, witness, before)
    assert not has_session(old, "witness")
    # Not with the old key, also after a restart that has forgotten the list.
    old.kill()
    shutil.rmtree(old.state_dir)
    shutil.copytree(kept, old.state_dir)
    old.start()
    if not hub_ends:
        wait_until(lambda: old.peers()["hub"]["last_error"], 15, "its dial to fail")
    wait_until(lambda: old.peers()["witness"]["last_error"], 15, "its dial to fail")
    assert "bad" not in witness.peers()
    if hub_ends:
        return
    # And not with its old invitation: with a new key, or as it was.
    network.leave(old)
    code, answer = old.api("POST", "/join", {"token": token, "name": "bad", "accept": True})
    assert code == http.HTTPStatus.BAD_GATEWAY
    assert "was used on" in answer["error"]["message"]
    shutil.rmtree(old.state_dir)
    shutil.copytree(kept, old.state_dir)
    (old.state_dir / "network" / "member.crt").unlink()
    (old.state_dir / "network" / "joining").write_bytes(_invitation_id(token))
    (old.state_dir / "network" / "joining").chmod(0o600)
    old.terminate()
    old.start()
    code, answer = old.api("POST", "/join", {"token": token, "name": "bad", "accept": True})
    assert code == http.HTTPStatus.BAD_GATEWAY
    assert "this key was removed from the network as bad" in answer["error"]["message"]


def _invitation_id(token):
    from shadowmesh.wire.mesh.token import Token

    return Token.parse(token).invitation_id


def test_a_list_goes_on_from_member_to_member_where_no_relay_is_reached(network):
    for name in ("bad", "near", "far"):
        network.join(name)
    announce(network, "near")
    far = network["far"]
    for name in ("bad", "far"):
        network.await_session(name, "near")
    announce(network, "far")
    network.await_session("bad", "far")
    # From now on the far one has nothing to do with the hub.
    assert far.api("POST", "/disconnect", {"name": "hub"})[0] == http.HTTPStatus.OK
    wait_until(lambda: not has_session(far, "hub"), 10, "the far one is alone")
    assert has_session(far, "bad")
    network.remove("bad")
    network["hub"].kill()
    wait_until(lambda: "bad" not in far.peers(), OUT_WITHIN_S, "out at the far one")
    assert has_session(far, "near")


def test_a_copy_of_a_member_is_named_on_both_and_at_the_hub(network):
    network.join("one")
    network.await_session("one", "hub")
    twin = network.machine("twin")
    twin.terminate()
    shutil.rmtree(twin.state_dir / "network", ignore_errors=True)
    shutil.copytree(network["one"].state_dir / "network", twin.state_dir / "network")
    twin.start()

    def named(daemon):
        report = network.network(daemon)
        return report is not None and "SM-IDENTITY-TWICE" in (report["problem"] or "")

    for daemon in (network["hub"], network["one"], twin):
        wait_until(lambda daemon=daemon: named(daemon), 60, f"named at {daemon.host.label}")
    said = network.network(network["hub"])["problem"]
    for daemon in (network["one"], twin):
        assert daemon.host.ipv4 in said
    # What the two do to each other is bounded: a few sessions a minute, and the hub is well.
    count = network["hub"].log().count("replaced=True")
    time.sleep(5)
    assert network["hub"].log().count("replaced=True") <= count + 5


@pytest.mark.parametrize("kind", [proxies.Kind.NGINX, proxies.Kind.HAPROXY])
def test_a_relay_behind_a_proxy_that_ends_tls_is_joined_through_it(directory, kind):
    if not proxies.installed(kind):
        pytest.skip(f"needs {kind.value}")
    home = directory / kind.value
    with running_network(home) as network:
        (hub,) = network.machines("hub")
        with proxies.Proxy(network.net, kind, hub.host, home) as proxy:
            body = {"name": "home", "own_name": "hub", "address": proxy.endpoint}
            network.ask(hub, "POST", "/network", body)
            network.await_member(hub)
            laptop = network.join("laptop")
            network.await_session("laptop", "hub")
            assert laptop.peers()["hub"]["tls_path"] == "proxied-or-intercepted"
            assert laptop.host.ping(network.address("hub"), count=3).complete
            strict = network.machine("strict", **{"websocket.require_direct_tls": True})
            token = network.invite()
            code, answer = strict.api("POST", "/join", {"token": token, "accept": True})
            assert code == http.HTTPStatus.BAD_GATEWAY
            assert "TLS is proxied or intercepted" in answer["error"]["message"]
            assert "websocket.require_direct_tls" in answer["error"]["message"]
            # The same where it is the relay that wants it.
            hub.settings["websocket.require_direct_tls"] = True
            hub.reload()
            del strict.settings["websocket.require_direct_tls"]
            strict.reload()
            code, answer = strict.api("POST", "/join", {"token": token, "accept": True})
            assert code == http.HTTPStatus.BAD_GATEWAY
            assert "TLS is proxied or intercepted" in answer["error"]["message"]
            listed = network.ask(hub, "GET", "/invitations")["invitations"]
            assert [one["used"] for one in listed if one["name"] is None] == [0]
