"""This machine as a member, as others see it: what the snapshot and the health checks say of it.

Owns: how membership, meeting and desk become values of `insight`. Does not know: what counts as well
(`insight.network_health` judges), who asks, how anything is changed. Loaded only in a network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shadowmesh.insight import network_health
from shadowmesh.insight.network import ListReport, NetworkStatus
from shadowmesh.network.revocation import FULL_SHARE, WARN_SHARE

if TYPE_CHECKING:
    from shadowmesh.insight.status import Check
    from shadowmesh.network.membership import Membership
    from shadowmesh.service.member import Member


class MemberView:
    """Shows one member; cheap enough for each second."""

    def __init__(self, member: Member) -> None:
        self._member = member

    def status(self) -> NetworkStatus:
        """Return what a snapshot tells."""
        member, membership = self._member, self._member.membership
        own = membership.certificate
        around = member.relays()
        return NetworkStatus(
            name=membership.facts.name,
            own=own.name,
            addresses=tuple(map(str, own.addresses)),
            roles=tuple(sorted(own.roles)),
            issuer=member.registrar is not None,
            members_known=len(membership.members),
            attached=member.meeting.attached,
            directory_version=member.meeting.version,
            relays=around.relays,
            home_reason=around.reason,
            expires_at=own.not_after.timestamp(),
            lists=list_reports(membership),
            refused=dict(member.meeting.refused),
            join_answers={} if member.desk is None else dict(member.desk.answers),
            problem=membership.problem or member.meeting.problem or membership.disk_problem,
        )

    def checks(self, date: float) -> tuple[Check, ...]:
        """Run the checks. Args: date: of now, unix time."""
        membership, registrar = self._member.membership, self._member.registrar
        own, fault = membership.certificate, membership.fault
        newest = membership.revocations.newest
        found = [
            network_health.certificate(
                own.not_before.timestamp(),
                own.not_after.timestamp(),
                date,
                None if fault is None else (fault.kind, str(fault)),
            ),
            network_health.lists(
                None if newest is None else newest.timestamp(), date, issuer=registrar is not None
            ),
            network_health.saved(membership.disk_problem),
            network_health.identities(self._member.meeting.problem),
        ]
        if registrar is not None:
            issuer = registrar.issuer
            found += [
                network_health.authority(issues=issuer.issues, revokes=issuer.revokes),
                network_health.list_room(issuer.share_of_list(), warn=WARN_SHARE, full=FULL_SHARE),
            ]
        return tuple(found)


def list_reports(membership: Membership) -> tuple[ListReport, ...]:
    """Return what operators are told of the newest revocation list of each signer."""
    return tuple(
        ListReport(one.number, one.made_at.timestamp(), len(one.entries))
        for one in membership.revocations.lists
    )
