"""What serves the routes about keys of a network and its operator's files.

Owns: what each of them hands over and answers. Does not know: gevent, how the daemon does what it is
asked. A part of the handlers of `app`.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Protocol

from shadowmesh.control.answers import json_answer

if TYPE_CHECKING:
    from flask import Response

    from shadowmesh.insight.custody import Backup, Received, Restored


class Custody(Protocol):
    """What is asked of the daemon. Failures are `ControlError`s; none repeats a secret."""

    def receive(self, offset: int, data: bytes) -> Received:
        """Take a piece of a file; offset 0 begins another one."""
        ...

    def back_up(self, passphrase: str, recovery_key: str | None) -> Backup: ...

    def restore(self, digest: str, passphrase: str) -> Restored:
        """Be what a backup says, which was received; the daemon begins anew after the answer."""
        ...


class Custodian(Protocol):
    """Who has one."""

    def custody(self) -> Custody: ...


class CustodyHandlers:
    """One method for each route, of the route's name."""

    _control: Custodian

    def receive_file(self, offset: int, data: str) -> Response:
        return json_answer(self._custody.receive(offset, base64.b64decode(data)).to_dict())

    def back_up(self, passphrase: str, recovery_key: str | None) -> Response:
        return json_answer(self._custody.back_up(passphrase, recovery_key).to_dict())

    def restore(self, file: str, passphrase: str) -> Response:
        return json_answer(self._custody.restore(file, passphrase).to_dict())

    @property
    def _custody(self) -> Custody:
        return self._control.custody()
