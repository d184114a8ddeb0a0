"""The health checks of a member of a network: its certificate, the lists, what the issuer needs.

Owns: the judgement of each, its code, text and remedy. Does not know: where the facts come from
(`service.member_view`). As in `health`, every function is pure and returns one `Check`.
"""

from __future__ import annotations

from typing import Final

from shadowmesh.base.units import duration, percent
from shadowmesh.insight.form import format_time
from shadowmesh.insight.status import Check, Severity

_DAY_S: Final = 86400.0
#: so long before its end a certificate is told of, what that is called, and how bad it is
EXPIRES: Final[tuple[tuple[float, str, Severity], ...]] = (
    (1 * _DAY_S, "certificate_expires_in_1_day", "error"),
    (7 * _DAY_S, "certificate_expires_in_7_days", "warning"),
    (30 * _DAY_S, "certificate_expires_in_30_days", "warning"),
)
#: A certificate that lives for days is renewed at two thirds: before that its end is no news.
NEWS_SHARE: Final = 1 / 3
#: the issuer signs a list each day, also without a change. Source: mesh-rules C2
OLD_LIST_S: Final = 7 * _DAY_S

_CODES: Final = {
    "revoked": "certificate_removed",
    "superseded": "certificate_superseded",
    "expired": "certificate_expired",
}
#: whoever shows one of them is given another (mesh-rules C5)
_RENEWABLE: Final = ("superseded", "expired")
_JOIN_AGAIN: Final = (
    "ask who runs the network for an invitation, then `shadowmesh leave` and `shadowmesh join` here"
)
#: what mends itself, and what to do if it does not
_RENEWED: Final = (
    "this machine fetches a newer one by itself when it reaches a relay (`shadowmesh peers`); if"
    f" none comes, {_JOIN_AGAIN}"
)
_COMPACT: Final = (
    "give all members new certificates under another authority: `shadowmesh network compact`"
)


def certificate(
    not_before: float, not_after: float, now: float, fault: tuple[str, str] | None
) -> Check:
    """Judge this machine's own certificate, unix times.

    Args:
        fault: kind (of `BadCertificate`) and sentence of why it counts no more; None while it does.
    """
    name = "member_certificate"
    if fault is not None:
        kind, text = fault
        remedy = _RENEWED if kind in _RENEWABLE else _JOIN_AGAIN
        return Check(name, False, "error", text, remedy, _CODES.get(kind, "certificate_refused"))
    left = not_after - now
    if left <= 0:
        text = f"this machine's certificate of the network expired on {_day(not_after)}"
        return Check(name, False, "error", text, _RENEWED, "certificate_expired")
    if left < (not_after - not_before) * NEWS_SHARE:
        for before_s, code, severity in EXPIRES:
            if left < before_s:
                text = f"this machine's certificate of the network expires in {duration(left)}"
                return Check(name, False, severity, text, _RENEWED, code)
    return Check(name, True, text=f"valid until {_day(not_after)}")


def lists(issued_at: float | None, now: float, *, issuer: bool) -> Check:
    """Judge the newest revocation list. Args: issued_at: None: there is none."""
    name = "revocation_list"
    if issued_at is None:
        text = "no revocation list of the network is known, so no member is let in"
        return Check(name, False, "error", text, _JOIN_AGAIN, "list_missing")
    age_s = now - issued_at
    if age_s > OLD_LIST_S:
        remedy = (
            "look at the log of this machine, which signs a new one each day" if issuer
            else "look whether the machine with the ledger runs, and whether a relay is reached"
        )  # fmt: skip
        age = duration(age_s)
        text = f"the newest revocation list is {age} old: whoever was removed since may be let in"
        return Check(name, False, "warning", text, remedy, "list_old")
    return Check(name, True, text=f"the newest is {duration(age_s)} old")


def saved(problem: str | None) -> Check:
    """Judge whether what others told is on the disk; None: it is."""
    name = "network_saved"
    if problem is not None:
        return Check(
            name, False, "warning", f"{problem}; a restart would forget what members have told",
            "make room, or let the daemon write there; it does so with the next change",
            "network_not_saved",
        )  # fmt: skip
    return Check(name, True, text="what is known of the network is on the disk")


def identities(problem: str | None) -> Check:
    """Judge whether a member is one machine; problem None: each is. Source: mesh-rules D2."""
    name = "identities"
    if problem is not None:
        return Check(
            name, False, "warning", problem.partition("; ")[0],
            "let one of the two machines leave the network and join it by an invitation of its own",
            "identity_twice",
        )  # fmt: skip
    return Check(name, True, text="no member runs on two machines, as far as is seen from here")


def authority(*, issues: bool, revokes: bool) -> Check:
    """Judge what the machine with the ledger can sign."""
    name = "authority"
    if issues:
        return Check(name, True, text="this machine can let members in and put them out")
    if revokes:
        return Check(
            name, False, "warning", "nobody can join: the key of the authority is elsewhere",
            "bring it back for as long as somebody joins", "authority_away",
        )  # fmt: skip
    return Check(
        name, False, "warning",
        "nobody can join or be removed: the key of the authority is elsewhere",
        "bring it back, or leave a revoker here with `shadowmesh network authority export`",
        "authority_missing",
    )  # fmt: skip


def list_room(share: float, *, warn: float, full: float) -> Check:
    """Judge how full the revocation list is, 0 to 1. Source: mesh-rules C3."""
    name = "list_room"
    if share >= full:
        text = f"{percent(share)} of the revocation list are full: nobody can join any more"
        return Check(name, False, "warning", text, _COMPACT, "list_full")
    if share >= warn:
        text = (
            f"{percent(share)} of the revocation list are full, and at {percent(full)} nobody can"
            " join any more"
        )
        return Check(name, False, "warning", text, _COMPACT, "list_nearly_full")
    return Check(name, True, text=f"{percent(share)} of the revocation list are full")


def _day(unix_s: float) -> str:
    return str(format_time(unix_s))[:10]
