"""Which time counts when certificates are judged, and when the issuer may sign.

Machines without a clock battery exist. A clock that is wrong must not keep a daemon from starting or
joining, and a list that says another date must not make certificates expire.
Owns: the floor under the local clock, the issuer's own check. Does not know: the clock itself.
Source: mesh-rules C7.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from shadowmesh.base.errors import IssuerRefused

#: this program did not exist before; a clock that says less is wrong
BUILD_DATE: Final = datetime(2026, 11, 30, tzinfo=UTC)
#: by this file beside the ledger an operator says that the clock is right, and the ledger is not
RIGHT_FILE: Final = "clock-is-right"
#: what lists say never brings an authority nearer to its end than this
_BEFORE_THE_END: Final = timedelta(days=30)
#: the issuer signs at least daily while it runs; a ledger that rests for longer is asked about
_LONGEST_REST: Final = timedelta(days=400)


def checking_time(
    local: datetime,
    *,
    newest_list: datetime | None = None,
    own_not_before: datetime | None = None,
    authority_not_after: datetime | None = None,
    own_not_after: datetime | None = None,
    build_date: datetime = BUILD_DATE,
) -> datetime:
    """Return the time that certificates are judged by.

    The latest of the local clock, the build date and the beginning of our own certificate; the date
    of the newest revocation list only when the local clock is certainly wrong. None of them but the
    local clock reaches into the last 30 days of the authority.

    Never later than the end of our own certificate: by a clock that says so we are no member, and
    whoever has another clock tells us. So a clock that is far ahead makes us forget nobody.
    """
    known = [build_date]
    if own_not_before is not None:
        known.append(own_not_before)
    if newest_list is not None and local < build_date:
        known.append(newest_list)
    floor = max(known)
    if authority_not_after is not None:
        floor = min(floor, authority_not_after - _BEFORE_THE_END)
    found = max(local, floor)
    return found if own_not_after is None else min(found, own_not_after)


def check_issuer_clock(now: datetime, last: datetime | None, *, trusted: bool = False) -> None:
    """Refuse to sign by a clock that the ledger contradicts.

    Args:
        last: the latest date in the ledger, None in a new one.
        trusted: the operator said by the file RIGHT_FILE that the clock is right.
    Raises:
        IssuerRefused: the clock is before `last`, or more than 400 days after it.
    """
    if trusted or last is None:
        return
    if now < last:
        wrong = f"is before {spell(last)}, when this ledger was last written"
    elif now - last > _LONGEST_REST:
        wrong = f"is more than {_LONGEST_REST.days} days after {spell(last)}, when this ledger was last written"
    else:
        return
    raise IssuerRefused(
        f"this machine's clock says {spell(now)}, which {wrong}: nothing is signed; set the clock,"
        f" or, if it is right, make an empty file {RIGHT_FILE} beside the ledger (state_dir/network) and"
        " restart the service",
        "clock",
    )


def spell(moment: datetime) -> str:
    """Return a date as people read it, to the second, in UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
