"""How a snapshot is put together."""

from __future__ import annotations

import errno

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
