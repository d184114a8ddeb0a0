# A port of the switch: one peer, over all of its sessions.
#
#   route       published by the hub; a TAP thread reads the one that it has pinned (peers.pxd)
#   remote_key_id    as the route, to be looked at without a pin
#   active, number, most_macs, listed_macs, mac_list, floods    the hub's, before the port is published
#               or by one atomic store
#   lanes[]     what each TAP thread has for the peer: that thread's
#   openers[]   one for each thread that opens records
#   macs        any thread, by atomic adds (fdb.pxd)
#
# A port goes away only when no thread can still have a pointer to it: port_free() in lifecycle.pxd.

from .base cimport *
from .backlog cimport lane_t
from .drop_reasons cimport *
from .ring cimport MAX_QUEUES
from .session cimport *

cdef enum:
    MAX_PORTS = 1024
    MAX_LISTED_MACS = 256

# Who opens records.
cdef enum:
    BY_HUB = 0
    BY_WSS_THREAD
    BY_UDP_THREAD
    OPENERS

ctypedef struct flood_bucket_t: # what may be flooded: a token bucket, of one thread
    uint64_t filled_ns
    uint64_t frames             # in billionths, as the bytes: not a nanosecond is lost
    uint64_t bytes

ctypedef struct port_opened_t:
    uint64_t frames             # that were written to the device
    uint64_t bytes
    uint64_t dropped[DROP_REASONS]

ctypedef struct port_opener_t:
    port_opened_t counted
    flood_bucket_t floods
    uint8_t unshared[64]

cdef struct port_t:
    int number                  # in the plane's ports[]
    int floods                  # it gets broadcasts, and what nobody is known for
    session_t *active           # which session its frames leave by; NULL: none
    void *route                 # a route_t of that session, published; NULL: nothing may be sent
    uint64_t remote_key_id      # that it seals under; 0: none
    uint64_t single_until_ns    # UDP_SEGMENT failed: datagrams go one by one until then
    uint64_t macs               # entries of the forwarding database
    uint64_t most_macs
    int listed_macs             # -1: it may use any address that is nobody's
    uint64_t *mac_list          # so many
    lane_t lanes[MAX_QUEUES]
    port_opener_t openers[OPENERS]
