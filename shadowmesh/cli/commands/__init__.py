"""The commands of `shadowmesh`, one file each.

A file owns the options of its command and what that prints. Does not know: other commands; what
several need is in the folder above.
"""

#: what `program` puts together
__all__ = [
    "authority",
    "authority_replace",
    "bench",
    "bugreport",
    "capture",
    "cert",
    "completion",
    "configuration",
    "connect",
    "dashboard",
    "disconnect",
    "explain",
    "fdb",
    "help",
    "invite",
    "join",
    "keys",
    "leave",
    "logs",
    "netcheck",
    "network",
    "network_adopt",
    "network_backup",
    "network_delete",
    "network_secret",
    "peer",
    "peer_change",
    "peers",
    "ping",
    "relays",
    "reload",
    "status",
    "version",
    "wait",
]
