# Why a frame or a datagram goes no further: every verdict of the data plane.
#
# A reason is counted where it is given; its name is in _fastpath.pyx at the same place, what it
# means to an operator in shadowmesh/insight/reasons.py.

# Frames. The order is that of DROP_NAMES in _fastpath.pyx.
cdef enum:
    DROP_NOT_CONNECTED = 0
    DROP_LINK_STALLED
    DROP_LINK_LOST
    DROP_KEY_EXPIRED
    DROP_SEAL_REFUSED
    DROP_RUNT
    DROP_TOO_LONG
    DROP_BAD_OFFLOAD
    DROP_MULTICAST_SOURCE
    DROP_TAP_DOWN
    DROP_TAP_FULL
    DROP_TAP_REFUSED
    DROP_TAP_GONE
    DROP_UDP_SEND
    DROP_QUEUE_FULL
    DROP_OWN_DATAGRAM
    DROP_FOREIGN_MAC
    DROP_MAC_ELSEWHERE
    DROP_MAC_LIMIT
    DROP_FLOOD_LIMIT
    DROP_BAD_VLAN
    DROP_RESERVED_ADDRESS
    DROP_SPLIT_HORIZON
    DROP_REASONS

# Beside them, of whoever judges or seals.
cdef enum:
    KEEP = -1
    NO_ROOM = -2                # now: in the ring or the outbox

# Datagrams that are no record of ours, in the order of REFUSAL_NAMES in _fastpath.pyx.
cdef enum:
    REFUSED_UNKNOWN = 0         # neither a record nor STUN
    REFUSED_KEY_ID
    REFUSED_EXPIRED
    REFUSED_REPLAY
    REFUSED_FORGED
    REFUSED_TYPE
    REFUSED_FRAGMENT
    REFUSED_SIGNALS_FULL
    REFUSALS
