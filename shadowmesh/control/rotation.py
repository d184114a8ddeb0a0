"""What serves the routes that replace what a network rests on: its secret and its authorities.

Owns: what each of them hands over and answers. Does not know: gevent, how the daemon does what it is
asked. A part of the handlers of `app`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from shadowmesh.control.answers import json_answer

if TYPE_CHECKING:
    from flask import Response

    from shadowmesh.insight.rotation import Dropped, Replaced, Rotated


class Rotation(Protocol):
    """What is asked of the daemon. Failures are `ControlError`s; none repeats a secret."""

    def rotate_secret(self) -> Rotated: ...

    def replace_authority(self, recovery_key: str) -> Replaced: ...

    def drop_authorities(self, recovery_key: str) -> Dropped:
        """Trust the authority of this machine alone."""
        ...


class Rotator(Protocol):
    """Who has one."""

    def rotation(self) -> Rotation:
        """Who replaces the secret and the authorities of the network."""
        ...


class RotationHandlers:
    """One method for each route, of the route's name."""

    _control: Rotator

    def rotate_secret(self) -> Response:
        return json_answer(self._control.rotation().rotate_secret().to_dict())

    def replace_authority(self, recovery_key: str) -> Response:
        return json_answer(self._control.rotation().replace_authority(recovery_key).to_dict())

    def drop_authorities(self, recovery_key: str) -> Response:
        return json_answer(self._control.rotation().drop_authorities(recovery_key).to_dict())
