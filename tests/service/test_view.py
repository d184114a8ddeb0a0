"""How a snapshot is put together."""

from __future__ import annotations

import errno
from types import SimpleNamespace

import pytest

from shadowmesh.insight.status import Check
from shadowmesh.service import view


def test_what_the_process_uses_is_read_anew_only_when_it_is_older_than_asked(monkeypatch):
    now = 100.0
    readings = iter(range(10))
    monkeypatch.setattr(view, "read_resources", lambda _process: next(readings))
    monkeypatch.setattr(view.time, "monotonic", lambda: now)
    one = view.View(*[None] * 8)
    assert one._read_resources(0.0) == 0
    assert one._read_resources(0.0) == 1
    now += 4.9
    assert one._read_resources(5.0) == 1
    now += 0.1
    assert one._read_resources(5.0) == 2


def test_what_the_process_uses_is_the_last_reading_when_there_is_no_descriptor(monkeypatch):
    def fail(_process):
        raise OSError(errno.EMFILE, "Too many open files")

    one = view.View(*[None] * 8)
    monkeypatch.setattr(view, "read_resources", fail)
    assert one._read_resources(0.0) is None
    monkeypatch.setattr(view, "read_resources", lambda _process: 7)
    assert one._read_resources(0.0) == 7
    monkeypatch.setattr(view, "read_resources", fail)
    assert one._read_resources(0.0) == 7


@pytest.fixture
def watched(monkeypatch):
    """A view of a daemon whose tunnel is up, and how often its checks were made."""
    manager = SimpleNamespace(
        tap=object(),
        device_problem=None,
        peer=SimpleNamespace(machine=SimpleNamespace(state="connected"), current=None),
    )
    underlay = SimpleNamespace(generation=1)
    one = view.View(manager, *[None] * 6, underlay)
    one.checked = 0

    def check():
        one.checked += 1
        return Check("tap", True)

    monkeypatch.setattr(one, "_check_tap", check)
    monkeypatch.setattr(one, "_check_underlay", check)
    return one, manager, underlay


def test_the_kernel_is_not_asked_about_the_device_while_it_tells_of_no_change(watched):
    one, _, _ = watched
    for _ in range(60):
        one._look_around()
    assert one.checked == 2


@pytest.mark.parametrize("change", ["generation", "device", "problem", "state", "session", "path"])
def test_device_and_routes_are_judged_anew_when_something_has_changed(watched, change):
    one, manager, underlay = watched
    tunnel = SimpleNamespace(path="wss", wss=SimpleNamespace(far_end="192.0.2.2"))
    if change == "path":
        manager.peer.current = tunnel
    one._look_around()
    match change:
        case "generation":
            underlay.generation += 1
        case "device":
            manager.tap = object()
        case "problem":
            manager.device_problem = "no room"
        case "state":
            manager.peer.machine.state = "disconnected"
        case "session":
            manager.peer.current = tunnel
        case "path":
            tunnel.path = "udp"
    one._look_around()
    one._look_around()
    assert one.checked == 4
