"""When the device and the routes are judged anew."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from shadowmesh.insight.status import Check
from shadowmesh.service import checks


@pytest.fixture
def watched(monkeypatch):
    """Checks of a daemon whose tunnel is up, and how often they were made."""
    peer = SimpleNamespace(machine=SimpleNamespace(state="connected"), current=None)
    manager = SimpleNamespace(tap=object(), device_problem=None, peers=(peer,))
    underlay = SimpleNamespace(generation=1)
    one = checks.Checks(manager, *[None] * 6, underlay)
    one.checked = 0

    def check(*_peers):
        one.checked += 1
        return Check("tap", True)

    monkeypatch.setattr(one, "tap", check)
    monkeypatch.setattr(one, "underlay", check)
    return one, manager, underlay


def test_the_kernel_is_not_asked_about_the_device_while_it_tells_of_no_change(watched):
    one, _, _ = watched
    for _ in range(60):
        one.look_around()
    assert one.checked == 2


@pytest.mark.parametrize("change", ["generation", "device", "problem", "state", "session", "path"])
def test_device_and_routes_are_judged_anew_when_something_has_changed(watched, change):
    one, manager, underlay = watched
    peer = manager.peers[0]
    tunnel = SimpleNamespace(path="wss", wss=SimpleNamespace(far_end="192.0.2.2"))
    if change == "path":
        peer.current = tunnel
    one.look_around()
    match change:
        case "generation":
            underlay.generation += 1
        case "device":
            manager.tap = object()
        case "problem":
            manager.device_problem = "no room"
        case "state":
            peer.machine.state = "disconnected"
        case "session":
            peer.current = tunnel
        case "path":
            tunnel.path = "udp"
    one.look_around()
    one.look_around()
    assert one.checked == 4
