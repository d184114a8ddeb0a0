"""What happens in the network of this machine, as the flight recorder is told.

Owns: what is new since the last look at members and lists, and its words. Does not know: who has told
of it, what is done about it. Loaded only in a network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from shadowmesh.base import log
from shadowmesh.base.errors import BadCertificate

if TYPE_CHECKING:
    from shadowmesh.insight.events import Recorder
    from shadowmesh.network.certificate import Certificate
    from shadowmesh.network.membership import Membership

#: of a directory that comes as a whole so many members are named, for the ring is short
NAMED: Final = 10

_log = log.get("network")


class News:
    """Compares the network with what it was."""

    def __init__(self, membership: Membership, recorder: Recorder) -> None:
        """Everything that is known now is no news."""
        self._membership = membership
        self._recorder = recorder
        self._members = self._known()
        self._numbers = membership.revocations.numbers
        membership.members.on_clash = self._clash

    def look(self) -> None:
        """Members or lists may be others than before: tell of those that are."""
        record = self._recorder.record
        numbers = self._membership.revocations.numbers
        for signer, number in numbers.items():
            if number != self._numbers.get(signer):
                record("network", "a revocation list was taken", number=number)
        members = self._known()
        came = [one for key, one in members.items() if key not in self._members]
        gone = [one for key, one in self._members.items() if key not in members]
        self._numbers, self._members = numbers, members
        for one in came[:NAMED]:
            record("network", "a member has joined", name=one.name)
        for one in gone[:NAMED]:
            record("network", self._farewell(one), name=one.name)
        for what, some in (("more members have joined", came), ("more members are out", gone)):
            if len(some) > NAMED:
                record("network", what, count=len(some) - NAMED)

    def trouble(self, cause: str) -> None:
        """A member is wrong, such as one that runs on two machines."""
        self._recorder.record("network", "something is wrong with a member", cause=cause)

    def _known(self) -> dict[bytes, Certificate]:
        return {one.public_key: one for one in self._membership.members}

    def _farewell(self, gone: Certificate) -> str:
        try:
            self._membership.revocations.check(gone)
        except BadCertificate as error:
            if error.kind == "revoked":
                return "a member was removed"
        return "the certificate of a member counts no more"

    def _clash(self, keeps: Certificate, loses: Certificate, what: str) -> None:
        """Two members claim one thing. Source: mesh-rules D1."""
        code = "SM-IDENTITY-CLASH"
        self._recorder.record(
            "network",
            "two members have one identity",
            code=code,
            what=what,
            name=loses.name,
            kept_by=keeps.name,
        )
        _log.limited(60).warning(
            "two members have one identity, and the later one is not let in",
            code=code,
            what=what,
            name=loses.name,
            kept_by=keeps.name,
            remedy="remove one of the two from the network and invite it again",
        )
