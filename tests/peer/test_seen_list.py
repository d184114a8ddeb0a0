"""The dates of a list of peers, remembered over restarts."""

from __future__ import annotations

import base64
import errno
import os
import time
from typing import TYPE_CHECKING

from shadowmesh.base.constants import MAX_PEERS
from shadowmesh.peer import seen_list
from shadowmesh.peer.seen_list import NAME, SOON_S, SeenList

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

A, B = bytes(range(32)), bytes(range(1, 33))


def test_who_was_here_is_known_after_a_restart_and_who_was_not_stays_so(tmp_path: Path) -> None:
    before = SeenList(tmp_path)
    before.of(A).here()
    assert before.of(B).date is None
    before.write()
    after = SeenList(tmp_path)
    date = after.of(A).date
    assert date is not None
    assert abs(date - time.time()) < 60
    assert after.of(A).moment is None, "not in this run"
    assert after.of(B).date is None
    after.write()
    assert SeenList(tmp_path).of(A).date == date, "a run without a session changes no date"


def test_who_comes_and_goes_is_written_soon_and_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(seen_list, "boottime", lambda: now)
    written: list[bytes] = []
    monkeypatch.setattr(
        seen_list, "write_private_file", lambda _path, data, replace: written.append(data)
    )
    seen = SeenList(tmp_path)
    seen.of(A).here()
    seen.beat()
    assert not written
    now += SOON_S
    seen.of(B).here()
    seen.of(B).gone()
    seen.beat()
    assert [data.count(b"\n") for data in written] == [2]
    now += SOON_S
    seen.of(A).here()
    seen.beat()
    assert len(written) == 1, "who is still here is written seldom"


def test_who_is_not_on_the_list_any_more_is_forgotten(tmp_path: Path) -> None:
    seen = SeenList(tmp_path)
    for key in (A, B):
        seen.of(key).here()
    seen.keep({A})
    seen.write()
    again = SeenList(tmp_path)
    assert again.of(A).date is not None
    assert again.of(B).date is None


def test_a_full_list_fits(tmp_path: Path) -> None:
    seen = SeenList(tmp_path)
    keys = [number.to_bytes(32, "big") for number in range(MAX_PEERS)]
    for key in keys:
        seen.of(key).here()
    seen.write()
    again = SeenList(tmp_path)
    assert all(again.of(key).date is not None for key in keys)


def test_a_file_that_cannot_be_read_or_written_costs_the_dates_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for wrong in ("yesterday", f"{base64.b64encode(A).decode()} ever", "AAAA 2001-02-03T04:05:06Z"):
        (tmp_path / NAME).write_text(f"{wrong}\n")
        assert SeenList(tmp_path).of(A).date is None
    assert set(caplog.messages) == {"when the peers were last here is not known"}

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", refuse)
    seen = SeenList(tmp_path)
    seen.of(A).here()
    seen.write()
    assert seen.of(A).moment is not None
    assert caplog.messages[-1] == "when the peers were last here cannot be written"
    assert [path.name for path in tmp_path.iterdir()] == [NAME], "something is left behind"
