"""What of a pretended daemon's network lies in files."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from shadowmesh.base import errors
from shadowmesh.insight import custody

if TYPE_CHECKING:
    from tests.control.fake_control import FakeControl

#: what a backup is made of
SEALED = b"SMBK" + bytes(range(64))


class FakeCustody:
    """Notes what was asked in `control.calls`, secrets as they came."""

    def __init__(self, control: FakeControl) -> None:
        self._control = control
        self.file = b""
        self.lacking: tuple[str, ...] = ()

    def _asked(self, *call: str) -> None:
        self._control._answer(*call)

    def receive(self, offset: int, data: bytes) -> custody.Received:
        self._asked("receive", str(offset), str(len(data)))
        if offset == 0:
            self.file = b""
        if offset != len(self.file):
            raise errors.BadRequest("a piece is missing")
        self.file += data
        return custody.Received(len(self.file))

    def back_up(self, passphrase: str, recovery_key: str | None) -> custody.Backup:
        self._asked("back_up", passphrase, str(recovery_key))
        self._control._be_in_one()
        return custody.Backup(base64.b64encode(SEALED).decode(), self.lacking)

    def restore(self, digest: str, passphrase: str) -> custody.Restored:
        self._asked("restore", digest, passphrase)
        self._control._be_in_none()
        self._control.joined = self._control.restored
        return custody.Restored(self._control.restored, 2)
