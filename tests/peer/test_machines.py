"""The rig of the connection tests, where it could hide a fault or make one."""

from __future__ import annotations

import gevent
import pytest

from tests.peer.machines import Machine


def test_who_waits_for_a_frame_is_told_when_the_tap_is_closed(tmp_path):
    machine = Machine(tmp_path / "machine", listen=False).start()
    machine.device.open()
    reader = gevent.spawn(machine.receive, timeout_s=1.0)
    gevent.idle()
    machine.stop()
    with pytest.raises(OSError, match="closed in another greenlet"):
        reader.get()
