"""Joining a network by invitation: many at once, twice at once, killed, with what is not right."""

from __future__ import annotations

import http
import sqlite3
import sys
import time
from dataclasses import replace
from threading import Barrier, Thread

import pytest

from shadowmesh.keys import sodium
from shadowmesh.netlab import Daemon, wait_until
from shadowmesh.wire.mesh.token import Token
from tests.lab.network import running_network
from tests.words import faults

pytestmark = pytest.mark.netns

MANY = 20


@pytest.fixture(scope="module")
def network(directory):
    """A hub, and machines that want in; every test takes fresh ones."""
    with running_network(directory) as network:
        network.found()
        yield network


def ask(daemon, token, name=None, *, accept=True):
    """Return status and what was said."""
    code, answer = daemon.api("POST", "/join", {"token": token, "name": name, "accept": accept})
    return code, answer["error"]["message"] if "error" in answer else answer


def at_once(*calls):
    """Call all of them at the same moment; return what they return."""
    start, found = Barrier(len(calls)), {}

    def run(number, call):
        start.wait()
        found[number] = call()

    threads = [Thread(target=run, args=one) for one in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[number] for number in range(len(calls))]


def invitation(network, token):
    """What the ledger says of an invitation."""
    wanted = Token.parse(token).invitation_id.hex()
    listed = network.ask(network["hub"], "GET", "/invitations")["invitations"]
    return next(one for one in listed if one["id"] == wanted)


@pytest.mark.parametrize("one_for_all", [False, True], ids=["an invitation each", "one for all"])
def test_twenty_machines_that_join_at_once_are_all_in(network, one_for_all):
    names = [f"{'s' if one_for_all else 'e'}{number}" for number in range(MANY)]
    machines = network.machines(*names)
    tokens = (
        [network.invite(uses=MANY)] * MANY if one_for_all else [network.invite() for _ in names]
    )
    began = time.monotonic()
    calls = [
        lambda one=one, token=token, name=name: ask(one, token, name)
        for one, token, name in zip(machines, tokens, names, strict=True)
    ]
    said = at_once(*calls)
    assert {code for code, _ in said} == {http.HTTPStatus.OK}, said
    answered_s = time.monotonic() - began

    def all_there():
        peers = network["hub"].peers()
        return all(name in peers and peers[name]["state"] == "connected" for name in names)

    wait_until(all_there, 60, "a session with each", interval_s=0.1)
    print(f"{MANY} answered after {answered_s:.2f} s, in after {time.monotonic() - began:.2f} s")
    assert [answer["name"] for _, answer in said] == names
    given = [address for _, answer in said for address in answer["addresses"]]
    assert len(set(given)) == len(given) == 2 * MANY
    hub = network.address("hub")
    for machine, (_, answer) in zip(machines, said, strict=True):
        own = next(one for one in answer["addresses"] if "." in one)
        wait_until(lambda own=own: network["hub"].host.ping(own, count=1).complete, 10, own)
        wait_until(lambda one=machine: one.host.ping(hub, count=1).complete, 10, "the hub")
    network.end(*names)


def test_an_invitation_that_two_machines_use_at_once_lets_one_in(network):
    left, right = network.machines("left", "right")
    token = network.invite()
    said = at_once(lambda: ask(left, token, "left"), lambda: ask(right, token, "right"))
    assert sorted(code for code, _ in said) == [http.HTTPStatus.OK, http.HTTPStatus.BAD_GATEWAY]
    (text,) = [text for code, text in said if code != http.HTTPStatus.OK]
    assert "this invitation was used on" in text
    assert "ask for a new one" in text
    assert not faults(text)
    assert invitation(network, token)["used"] == 1
    network.end("left", "right")


def test_what_is_not_right_is_refused_in_words_and_burns_nothing(network):
    """One machine tries it all; in the end the same invitation lets it in."""
    (laptop,) = network.machines("laptop")
    hub = network["hub"]
    token = network.invite(expires_s=3600)
    parsed = Token.parse(token)
    (relay,) = parsed.relays
    stranger = sodium.public_key(bytes(range(32)))

    def altered(**changes):
        return replace(parsed, **changes).text()

    def at(address):
        return altered(relays=(replace(relay, address=address),))

    cancelled, expired = network.invite(), network.invite()
    network.ask(hub, "DELETE", f"/invitations/{Token.parse(cancelled).invitation_id.hex()}")
    with sqlite3.connect(hub.state_dir / "network" / "issuer.db", timeout=5) as db:
        db.execute(
            "UPDATE invitations SET expires_at = 1 WHERE id = ?",
            (Token.parse(expired).invitation_id,),
        )
    elsewhere = f"{hub.host.ipv4}:9999"
    tries = {
        cancelled: "was cancelled; ask for a new one",
        expired: "has expired; ask for a new one",
        altered(relays=(replace(relay, public_key=stranger),)): "ask for a new one",
        altered(secret=bytes(16)): "the proof of it is wrong; ask for a new one",
        altered(network_id=bytes(16)): "the proof of it is wrong; ask for a new one",
        at(elsewhere): f"cannot reach {elsewhere}",
        at(laptop.host.peer_endpoint): "is an address of this machine",
        at("198.51.100.77:9001"): "cannot reach 198.51.100.77:9001",
    }
    for text, why in tries.items():
        code, said = ask(laptop, text, "laptop")
        assert code in (http.HTTPStatus.BAD_GATEWAY, http.HTTPStatus.GATEWAY_TIMEOUT), said
        assert why in said, said
        assert not faults(said), said
    for place in (0, 4, 5, 40, 120, len(token) - 1):
        other = "0" if token[place] != "0" else "1"
        code, said = ask(laptop, token[:place] + other + token[place + 1 :], "laptop")
        assert code == http.HTTPStatus.BAD_REQUEST, said
        assert "copy the whole line" in said
    assert network.network(laptop) is None
    assert invitation(network, token)["used"] == 0
    code, said = ask(laptop, token.upper(), "laptop")
    assert code == http.HTTPStatus.OK, said
    network.await_member(laptop)
    network.end("laptop")


def test_a_joiner_that_is_killed_joins_again_as_the_same(network):
    (laptop,) = network.machines("killed")
    for round_ in range(6):
        token = network.invite()
        joining = Thread(target=lambda token=token: _quietly(ask, laptop, token, "killed"))
        joining.start()
        time.sleep(round_ * 0.012)
        laptop.kill()
        joining.join()
        laptop.start()
        if network.network(laptop) is None:
            code, said = ask(laptop, token, "killed")
            assert code == http.HTTPStatus.OK, said
            network.await_member(laptop)
        network.await_session("hub", "killed")
        assert invitation(network, token)["used"] == 1
        assert network.network(laptop)["own"] == "killed"
        (entry,) = [one for name, one in network["hub"].peers().items() if name == "killed"]
        assert network.address("killed") in entry["tunnel_ips"]
        network.leave(laptop)
        network.remove("killed")
    network.end("killed")


def _quietly(call, *arguments, or_else=None):
    try:
        return call(*arguments) or True
    except OSError:
        return or_else  # it does not run, or does not answer yet


def test_a_machine_with_peers_in_its_file_is_told_the_line_and_nothing_changes(network):
    own = [{"name": "old", "public_key": network["hub"].public_key}]
    (machine,) = network.machines("listed", peers=own)
    token = network.invite()
    before = sorted(one.name for one in machine.state_dir.iterdir())
    line = next(
        number
        for number, text in enumerate(machine.config_path.read_text().splitlines(), start=1)
        if text.startswith("peers:")
    )
    for code, said in (
        ask(machine, token, "listed"),
        ask(machine, token, "listed", accept=False),
        _made(machine),
    ):
        assert code == http.HTTPStatus.UNPROCESSABLE_ENTITY
        assert f"{machine.config_path}:{line}: peers: cannot stand beside a network" in said
    assert invitation(network, token)["used"] == 0
    assert sorted(one.name for one in machine.state_dir.iterdir()) == before
    assert set(machine.peers()) == {"old"}
    # What was said to do helps.
    del machine.settings["peers"]
    machine.reload()
    code, said = ask(machine, token, "listed")
    assert code == http.HTTPStatus.OK, said
    network.await_member(machine)
    network.await_session("listed", "hub")
    # And the other way round: peers that come later are refused, and the member goes on.
    machine.settings["peers"] = own
    machine.write_config()
    code, answer = machine.api("POST", "/reload")
    assert code == http.HTTPStatus.UNPROCESSABLE_ENTITY
    assert "peers: cannot stand beside the network home" in answer["error"]["message"]
    assert "hub" in machine.peers()
    machine.terminate()
    machine.spawn()
    assert machine.process.wait(20) == 7
    assert f"{machine.config_path}:" in machine.log_tail(1)
    network.end("listed")


def _made(machine):
    code, answer = machine.api("POST", "/network", {"name": "other"})
    return code, answer["error"]["message"]


def test_two_networks_and_a_pair_on_one_host_do_not_mix(network, directory):
    other = Daemon(
        network.net.host("second"),
        directory / "second",
        {"nat.enabled": True, "nat.stun_server": ""},
    )
    del other.settings["network.local_ip"]
    other.start()
    network.daemons["second"] = other
    network.make(other)
    (first,) = network.machines("both")
    code, said = ask(first, network.invite(name="both"))
    assert code == http.HTTPStatus.OK, said
    beside, pair = (
        Daemon(first.host, directory / name, {
            "daemon.listen_address": f"127.0.0.1:{9190 + number}",
            "websocket.listen_address": f"0.0.0.0:{9001 + 10 * number}",
            "nat.enabled": True, "nat.udp_port": 9001 + 10 * number, "nat.stun_server": "",
            "monitoring.metrics_enabled": False,
            "network.tap_device": f"tap{number}", "network.local_ip": f"10.9.{number}.1/24",
        })
        for number, name in ((1, "beside"), (2, "pair"))
    )  # fmt: skip
    del beside.settings["network.local_ip"]
    pair.settings["peer.public_key"] = beside.public_key
    for one in (beside, pair):
        one.api = _at_port(one)
        one.start()
        network.daemons[one.directory.name] = one
    token = network.ask(other, "POST", "/invitations", {"name": "beside"})["token"]
    code, said = ask(beside, token)
    assert code == http.HTTPStatus.OK, said
    network.await_member(beside)
    network.await_session("beside", "second")
    network.await_member(first)
    network.await_session("both", "hub")
    assert set(first.peers()) == {"hub"}
    assert set(beside.peers()) == {"second"}
    assert pair.status()["state"] == "disconnected"
    mine, theirs = network.address("both"), network.address("beside")
    assert first.host.interfaces().keys() >= {"tap0", "tap1"}
    assert network["hub"].host.ping(mine, count=2).complete
    assert other.host.ping(theirs, count=2).complete
    # The invitation of one is nothing in the other.
    code, said = ask(pair, network.invite())
    assert code == http.HTTPStatus.UNPROCESSABLE_ENTITY
    network.leave(beside)
    assert network["hub"].host.ping(mine, count=2).complete
    assert "tap1" not in first.host.taps()


def _at_port(daemon):
    """The API of a daemon that is not the only one of its host."""
    from shadowmesh.netlab import daemon as lab

    port = int(str(daemon.settings["daemon.listen_address"]).rpartition(":")[2])
    plain = type(daemon).api

    def api(*arguments, **options):
        saved, lab.API_PORT = lab.API_PORT, port
        try:
            return plain(daemon, *arguments, **options)
        finally:
            lab.API_PORT = saved

    return api


def test_a_machine_without_ipv6_is_a_member_by_ipv4(network):
    host = network.net.host("no6")
    for which in ("all", "default"):
        host.run("sysctl", "-qw", f"net.ipv6.conf.{which}.disable_ipv6=1")
    settings = {"nat.enabled": True, "nat.stun_server": ""}
    machine = Daemon(host, network.directory / "no6", settings)
    del machine.settings["network.local_ip"]
    machine.start()
    network.daemons["no6"] = machine
    code, said = ask(machine, network.invite(), "no6")
    assert code == http.HTTPStatus.OK, said
    network.await_member(machine)
    network.await_session("no6", "hub")
    assert host.ping(network.address("hub"), count=3).complete
    code, health = machine.api("GET", "/health")
    assert (code, health["status"]) == (http.HTTPStatus.OK, "ok"), health
    network.end("no6")
    # And it makes a network.
    machine.start()
    network.daemons["no6"] = machine
    network.leave(machine)
    network.make(machine)
    wait_until(machine.host.taps, 10, "its device")
    network.leave(machine)
    machine.kill()
    del network.daemons["no6"]


def test_a_relay_that_is_killed_while_many_join_lets_each_in_once(network):
    """What it had decided it knows, and what it had not is decided then."""
    names = [f"k{number}" for number in range(8)]
    machines = network.machines(*names)
    tokens = [network.invite() for _ in names]
    hub = network["hub"]
    for wait_s in (0.15, 0.3):
        calls = [
            lambda one=one, token=token, name=name: _quietly(ask, one, token, name)
            for one, token, name in zip(machines, tokens, names, strict=True)
        ]
        killer = Thread(target=lambda wait_s=wait_s: (time.sleep(wait_s), hub.kill()))
        killer.start()
        at_once(*calls)
        killer.join()
        hub.start()
    for machine, token, name in zip(machines, tokens, names, strict=True):
        if network.network(machine) is None:
            code, said = ask(machine, token, name)
            assert code == http.HTTPStatus.OK, said
            network.await_member(machine)
    for name in names:
        network.await_session(name, "hub")
    assert {invitation(network, token)["used"] for token in tokens} == {1}
    assert len({network.address(name) for name in names}) == len(names)
    network.end(*names)


#: the daemon, by a clock that is so many seconds off
BY_ANOTHER_CLOCK = """
import sys
from shadowmesh.base import clock
real, off = clock.wall_time, float(sys.argv.pop(1))
clock.wall_time = lambda: real() + off
from shadowmesh.service.daemon import main
main()
"""
YEAR_S = 365.25 * 86400


@pytest.mark.parametrize("years", [-20, -56, 20, 50])
def test_a_machine_whose_clock_is_wrong_joins_and_has_a_session(network, years):
    name = f"{'old' if years < 0 else 'new'}{abs(years)}"
    machine = Daemon(
        network.net.host(name), network.directory / name,
        {"nat.enabled": True, "nat.stun_server": ""},
    )  # fmt: skip
    del machine.settings["network.local_ip"]
    own = machine.command()[1:]
    seconds = str(years * YEAR_S)
    machine.command = lambda: [sys.executable, "-c", BY_ANOTHER_CLOCK, seconds, *own]
    machine.start()
    network.daemons[name] = machine
    code, said = ask(machine, network.invite(), name)
    assert code == http.HTTPStatus.OK, said
    network.await_member(machine)
    network.await_session(name, "hub")
    assert machine.host.ping(network.address("hub"), count=3).complete
    machine.terminate()
    # By a clock behind the end of its certificate it is not healthy, and goes on all the same.
    machine.spawn()
    wait_until(lambda: _quietly(network.await_session, name, "hub", or_else=False), 30, "a session")
    network.end(name)
