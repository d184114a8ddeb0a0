"""What a pretended daemon's network rests on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shadowmesh.base import errors
from shadowmesh.insight import rotation

if TYPE_CHECKING:
    from tests.control.fake_control import FakeControl

AUTHORITY = "0123-4567-89ab-cdef-0123-4567-89ab-cdef"


class FakeRotation:
    """Notes what was asked in `control.calls`, secrets as they came."""

    def __init__(self, control: FakeControl) -> None:
        self._control = control
        self.epoch = 1
        self.trusted = 1
        #: whom dropping puts out
        self.out: tuple[str, ...] = ()

    def rotate_secret(self) -> rotation.Rotated:
        self._asked("rotate_secret")
        self.epoch += 1
        return rotation.Rotated(self.epoch)

    def replace_authority(self, recovery_key: str) -> rotation.Replaced:
        self._asked("replace_authority", recovery_key)
        self.trusted += 1
        cancelled = sum(one.state == "open" for one in self._control.invited)
        return rotation.Replaced(AUTHORITY, 3, self.trusted, cancelled)

    def drop_authorities(self, recovery_key: str) -> rotation.Dropped:
        self._asked("drop_authorities", recovery_key)
        if self.trusted == 1:
            raise errors.IssuerRefused("there is none to drop", "alone")
        self.trusted = 1
        return rotation.Dropped(AUTHORITY, 1, self.out)

    def _asked(self, *call: str) -> None:
        self._control._answer(*call)
        self._control._be_in_one()
