"""Numbers and states of the path machine.

Owns: the states of the transport with the table of their changes, and the times that are our own
choice (those of the protocol are in `shadowmesh.base.constants`). Does not know: the machine.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from shadowmesh.base.constants import UDP_PROBE_INTERVAL_S

#: the data plane's time stamps are wanted this often while frames go over UDP
ACTIVITY_POLL_S: Final = 0.1
#: and this often when none went for a while. The first frame after it may be noticed so much later;
#: from then on UDP is given up within 1.2 s, and so within the 1.7 s of a steady flow
QUIET_POLL_S: Final = UDP_PROBE_INTERVAL_S
QUIET_AFTER_S: Final = 2.0
#: two rounds of punching do not begin closer together than this, whatever the peer asks for
PUNCH_SPACING_S: Final = 1.0
#: after UDP was given up the peer is asked to punch, this soon, at most so often
PUNCH_AFTER_FALL_S: Final = 1.0
PUNCH_AFTER_FALL_SPACING_S: Final = 10.0
#: the last of the three probes is given so many round trips, at least this and at most the
#: usual interval: the two before it are waited for, too, and the whole has to end in 2 s
LAST_WAIT_MIN_S: Final = 0.2
LAST_WAIT_RTTS: Final = 1.5
#: probes to find out whether UDP is back: after 1, 2, 4, 5, 5 ... s
RECOVERY_MIN_S: Final = 1.0
RECOVERY_MAX_S: Final = 5.0
#: UDP that carried frames for so long was healthy, and the next recovery begins fast again
HEALTHY_S: Final = 30.0
#: other addresses are probed this often while one carries the frames, so that their RTT is known
REFRESH_S: Final = 60.0
#: a better address has to be better by both: seconds, and a share of the present score
BETTER_BY_S: Final = 0.002
BETTER_BY_SHARE: Final = 0.2
#: a better address has to have answered within this time, else it is probed first
FRESH_S: Final = 2.0
#: AAD header, inner type, and the longer of the two tags
DEFAULT_OVERHEAD_BYTES: Final = 16 + 1 + 32


class Transport(StrEnum):
    """What carries the frames, and how sure that is."""

    OFF = "off"  # WSS for good
    WSS = "wss"  # no address is proven yet
    UDP = "udp"
    CHECKING = "checking"  # UDP, in doubt
    FALLEN = "fallen"  # WSS, since UDP was given up


class Cause(StrEnum):
    """What moves the transport."""

    DISABLED = "disabled"
    ENABLED = "enabled"
    PROVED = "proved"
    DOUBTED = "doubted"
    ANSWERED = "answered"
    LOST = "lost"


TRANSITIONS: Final = {
    Transport.OFF: {Cause.ENABLED: Transport.WSS},
    Transport.WSS: {Cause.PROVED: Transport.UDP, Cause.DISABLED: Transport.OFF},
    Transport.UDP: {Cause.DOUBTED: Transport.CHECKING, Cause.DISABLED: Transport.OFF},
    Transport.CHECKING: {
        Cause.ANSWERED: Transport.UDP,
        Cause.LOST: Transport.FALLEN,
        Cause.DISABLED: Transport.OFF,
    },
    Transport.FALLEN: {Cause.PROVED: Transport.UDP, Cause.DISABLED: Transport.OFF},
}
