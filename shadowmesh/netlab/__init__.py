"""Hosts out of network namespaces, and a real daemon on each: for `make demo` and system tests.

        host "left"                  switch                   host "right"
    eth0 198.51.100.1/24 ---- p1 [ bridge br0 ] p2 ---- eth0 198.51.100.2/24
         2001:db8::1/64                                      2001:db8::2/64

Owns: namespaces, the cables and the switch between them, one daemon's files and process on a host,
what leaves no trace afterwards. Does not know: the inside of the daemon, only its command line and
API. Faults are set on the switch: on the sender's own output a drop would come back as EPERM.
"""

from shadowmesh.netlab.daemon import API_PORT, Daemon, acquaint, introduce
from shadowmesh.netlab.namespaces import (
    NETNS_DIRECTORY,
    PEER_PORT,
    Host,
    Net,
    NetlabError,
    bound_to_us,
    sweep,
    wait_until,
)
from shadowmesh.netlab.ping import Ping

__all__ = [
    "API_PORT",
    "NETNS_DIRECTORY",
    "PEER_PORT",
    "Daemon",
    "Host",
    "Net",
    "NetlabError",
    "Ping",
    "acquaint",
    "bound_to_us",
    "introduce",
    "sweep",
    "wait_until",
]
