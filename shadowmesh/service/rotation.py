"""Replacing what a network rests on: its secret and its authorities, as the API asks for it.

Owns: what belongs to each of these steps beside the registrar's part of it. Does not know: HTTP, how
members get what is new (`network.meeting`). Loaded by the first who asks for one of them.

The recovery key comes in and goes no further: not into a log, an error or a file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shadowmesh.base import log
from shadowmesh.base.clock import utc_now
from shadowmesh.base.errors import BadRequest, IssuerRefused
from shadowmesh.insight.rotation import Dropped, Replaced, Rotated
from shadowmesh.network import trust
from shadowmesh.service.member import need
from shadowmesh.service.networks import fingerprint, told

if TYPE_CHECKING:
    from shadowmesh.service.member import Member

_log = log.get("network")


class Rotation:
    """The operations of the machine with the ledger.

    Raises:
        NotInNetwork: this machine is in no network.
    """

    def __init__(self, member: Member | None) -> None:
        self._member = need(member)

    def rotate_secret(self) -> Rotated:
        """Give the network another secret.

        Raises:
            IssuerRefused: this machine has no ledger.
        """
        with told():
            epoch = self._member.issuing().rotate_secret(utc_now())
        self._look_at_the_door()
        _log.info("the network has another secret", epoch=epoch)
        return Rotated(epoch)

    def replace_authority(self, recovery_key: str) -> Replaced:
        """Make a new authority, and give every member a certificate of it.

        Raises:
            BadRequest: the recovery key is mistyped.
            IssuerRefused: it is of another network, this machine has no ledger, or too many
                authorities are trusted.
        """
        seed = _seed(recovery_key)
        with told():
            issuing = self._member.issuing()
            issued = issuing.replace_authority(seed, utc_now())
            # A joiner would refuse an answer that the authority of its invitation does not vouch for.
            cancelled = issuing.cancel(None, utc_now())
        self._look_at_the_door()
        authority = self._authority()
        _log.info("the network has another authority", fingerprint=authority, members=issued)
        trusted = len(self._member.membership.trust_list.authorities)
        return Replaced(authority, issued, trusted, cancelled)

    def drop_authorities(self, recovery_key: str) -> Dropped:
        """Trust the authority of this machine alone.

        Raises:
            BadRequest, IssuerRefused: as `replace_authority`; also when there is only one.
        """
        seed = _seed(recovery_key)
        before = len(self._member.membership.trust_list.authorities)
        if before == 1:
            raise IssuerRefused("the network trusts one authority; there is none to drop", "alone")
        with told():
            out = self._member.issuing().drop_authorities(seed, utc_now())
        authority = self._authority()
        _log.info("one authority is trusted", fingerprint=authority, out=list(out))
        return Dropped(authority, before - 1, out)

    def _authority(self) -> str:
        return fingerprint(self._member.membership.trust_list.authorities[0].fingerprint)

    def _look_at_the_door(self) -> None:
        """Whether anybody has to be heard who is no member yet, or is one no more."""
        if self._member.desk is not None:
            self._member.desk.look()


def _seed(recovery_key: str) -> bytes:
    try:
        return trust.recovery_seed(recovery_key)
    except ValueError as error:
        raise BadRequest(str(error)) from None
