"""The date that is remembered over restarts, on a disk that does not take it."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from shadowmesh.peer.last_seen import NAME, LastSeen

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_a_full_disk_costs_the_new_date_and_not_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    old = "2001-02-03T04:05:06.000Z\n"
    (tmp_path / NAME).write_text(old)

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    last_seen = LastSeen(tmp_path)
    with monkeypatch.context() as full:
        full.setattr(os, "write", refuse)
        for _ in range(3):
            last_seen.here()
            last_seen.gone()
    assert last_seen.moment is not None, "what this run knows does not need the disk"
    assert [path.name for path in tmp_path.iterdir()] == [NAME], "something is left behind"
    assert (tmp_path / NAME).read_text() == old
    assert caplog.messages == ["when the peer was last here cannot be written"], "once is enough"
    last_seen.gone()
    assert (tmp_path / NAME).read_text() > old
