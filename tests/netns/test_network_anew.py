"""A daemon that begins anew, in a network or out of it: nothing of who it was before is left."""

from __future__ import annotations

import http
import os
import signal
import time
from pathlib import Path

import pytest

from shadowmesh.keys.identity import Identity
from shadowmesh.keys.mac import stable_mac
from shadowmesh.netlab import Daemon, wait_until
from tests.lab.frames import mac
from tests.lab.network import running_network
from tests.lab.service_manager import ServiceManager

pytestmark = pytest.mark.netns

ROUNDS = 12
WATCHDOG_S = 1.0


@pytest.fixture
def network(directory, request):
    with running_network(directory / request.node.name) as network:
        yield network


def threads(daemon):
    return len(os.listdir(f"/proc/{daemon.pid}/task"))


def resident_kib(daemon):
    lines = Path(f"/proc/{daemon.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def identity_of(daemon):
    return Identity.from_seed((daemon.state_dir / "network" / "member.key").read_bytes())


def addresses(daemon):
    """Those of the TAP, but the one that the kernel gives each link."""
    if daemon.tap not in daemon.host.taps():
        return set()
    words = daemon.host.ip(f"-brief address show dev {daemon.tap}").split()[2:]
    return {word for word in words if not word.startswith("fe80")}


def test_many_networks_leave_no_descriptor_no_thread_and_no_memory(network):
    daemon = network.machine("a")
    for number in range(ROUNDS):
        network.make(daemon)
        tap = daemon.host.interfaces()[daemon.tap]
        assert mac(tap["address"]) == stable_mac(identity_of(daemon).public_key)
        network.leave(daemon)
        assert daemon.host.taps() == []
        if number == 2:
            before = daemon.open_fds(), threads(daemon), resident_kib(daemon)
    # It answers a moment before it has thrown away what it was.
    wait_until(lambda: daemon.open_fds() <= before[0] + 3, 5, "no more descriptors")
    wait_until(lambda: threads(daemon) <= before[1] + 2, 5, "no more threads")
    assert resident_kib(daemon) < before[2] + 4096


def test_a_persistent_device_keeps_no_address_of_a_network_that_was_left(network):
    daemon = network.machine("a", **{"network.persist_tap": True})
    for _ in range(2):
        network.make(daemon)
        wait_until(lambda: len(addresses(daemon)) == 2, 5, "the addresses of the network")
        network.leave(daemon)
        assert daemon.host.taps() == [daemon.tap]
        assert addresses(daemon) == set()


def test_a_reload_while_the_daemon_begins_anew_opens_nothing_of_before(network):
    network.found()
    hub, laptop = network["hub"], network.join("laptop")
    network.await_session("hub", "laptop")
    laptop.pause()  # so that the end of its session takes the hub some time
    network.ask(hub, "POST", "/leave")
    for _ in range(12):
        time.sleep(0.05)
        hub.process.send_signal(signal.SIGHUP)
    network.await_no_member(hub)
    laptop.resume()
    assert hub.host.run("ss", "-Hlnt", "sport = :9001").stdout == ""
    before, _, after = hub.log().rpartition("the daemon begins anew")
    assert "peer port is open" in before
    assert "peer port is open" not in after
    wait_until(lambda: "configuration reloaded" in hub.log(), 5, "it is read again in the end")


def test_who_asks_to_join_and_to_leave_at_once_is_answered_and_ends_where_it_was(network):
    network.found()
    token = network.invite(uses=2)
    laptop = network.machine("laptop")
    for _ in range(2):
        network.ask(laptop, "POST", "/join", {"token": token, "name": "laptop", "accept": True})
        answers = []

        def left(answers=answers):
            try:
                code, answer = laptop.api("POST", "/leave")
            except OSError:
                return False
            answers.append((code, answer.get("error", {}).get("code")))
            return code == http.HTTPStatus.OK

        wait_until(left, 20, "it has left")
        assert set(answers[:-1]) <= {(http.HTTPStatus.SERVICE_UNAVAILABLE, "stopping")}
        network.await_no_member(laptop)
        assert not (laptop.state_dir / "network").exists()
        network.remove("laptop")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_daemon_that_ends_while_it_begins_anew_is_a_member_after_the_next_start(network, number):
    daemon = network.machine("a")
    for wait_s in (0, 0.02, 0.06):
        network.ask(daemon, "POST", "/network", {"name": "home", "own_name": "a"})
        time.sleep(wait_s)
        if number == signal.SIGTERM:
            code, took_s = daemon.terminate()
            assert (code, took_s < 3) == (0, True)
            assert daemon.host.run("ss", "-Hlntu").stdout == ""
        else:
            daemon.kill()
        assert daemon.host.taps() == []
        daemon.start()
        assert network.network(daemon)["own"] == "a"
        network.leave(daemon)


def test_the_service_manager_keeps_no_descriptor_of_before_and_hears_that_it_goes_on(
    directory, network
):
    with ServiceManager(directory / "manager") as manager:
        daemon = Daemon(network.net.host("served"), directory / "served", {"nat.enabled": True})
        del daemon.settings["network.local_ip"]
        daemon.wrapper = manager.wrapper
        daemon.environment = {"WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6))}
        daemon.start()
        network.daemons["served"] = daemon
        for number in (signal.SIGKILL, signal.SIGTERM):
            network.make(daemon)
            wait_until(lambda: sorted(manager.stored) == ["peer", "tap", "udp"], 5, "all is stored")
            network.leave(daemon)
            assert sorted(manager.stored) == ["udp"]
            network.make(daemon)
            own, before = addresses(daemon), identity_of(daemon).public_key
            daemon.process.send_signal(number)
            daemon.process.wait(10)
            assert addresses(daemon) == own, "it is there while nobody runs"
            daemon.start()
            assert identity_of(daemon).public_key == before
            assert addresses(daemon) == own
            network.ask(daemon, "POST", "/leave")
            daemon.kill()  # before, while, or when it has begun anew
            daemon.start()
            assert network.network(daemon) is None
            assert daemon.host.taps() == []
        manager.words.clear()
        network.make(daemon)
        assert {"RELOADING=1", "READY=1"} <= set(manager.words)
        wait_until(lambda: "WATCHDOG=1" in manager.words, 2 * WATCHDOG_S + 1, "the watchdog is fed")
        daemon.kill()


def test_a_disconnect_of_before_keeps_nobody_from_the_next_network(network):
    network.found()
    laptop = network.join("laptop")
    network.await_session("hub", "laptop")
    assert laptop.api("POST", "/disconnect")[0] == http.HTTPStatus.OK
    network.leave(laptop)
    token = network.invite(name="again")
    network.ask(laptop, "POST", "/join", {"token": token, "accept": True})
    network.await_member(laptop)
    network.await_session("laptop", "hub")


def test_a_network_whose_port_is_taken_is_not_made_and_the_daemon_goes_on(network):
    daemon = network.machine("a")
    body = {"name": "home", "own_name": "a", "address": f"{daemon.host.ipv4}:7777"}
    with daemon.host.listen(("0.0.0.0", 7777)):
        code, answer = daemon.api("POST", "/network", body)
        assert code == http.HTTPStatus.UNPROCESSABLE_ENTITY
        assert "port 7777 is taken" in answer["error"]["message"]
    assert network.network(daemon) is None
    assert not (daemon.state_dir / "network").exists()
    network.ask(daemon, "POST", "/network", body)
    network.await_member(daemon)
