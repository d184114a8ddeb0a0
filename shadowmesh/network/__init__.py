"""A network of members: who belongs to it, who says so, and what of that lies on the disk.

Owns: certificates, revocation lists, the trust list, the authority and its ledger, invitations from
the issuer's side, the files below ``state_dir/network``. Does not know: sessions, sockets, gevent,
the clock (`now` comes in), how anything travels.

::

    membership  what this machine is    registrar   makes networks, invites, answers joiners
    issuer      decides: invitations, members, lists, secrets
    authority   the keys that sign        ledger      what was ever decided (SQLite)
    certificate of a member               revocation  lists of what no longer counts
    trust       which authorities         store       the files of a member
    members     who owns what             joining     what a joiner believes
    clock       which time counts         subnet      addresses of the tunnel
    home        which relay is nearest    facts       names, subnets, addresses
    backup      all of it in one file     meeting     what members tell each other
    twins       one identity on two machines
    bundle      what a new member is told adoption    a network under another CA
    pem         how such things stand in files
    founding    a new network             offline      what leaves the issuer and comes back

Nothing here is imported by a daemon without a network. Source: mesh and mesh-rules.
"""

#: what the rest of the program may import; all else is private
__all__ = [
    "adoption",
    "backup",
    "bundle",
    "certificate",
    "facts",
    "home",
    "joining",
    "ledger",
    "meeting",
    "membership",
    "offline",
    "pem",
    "registrar",
    "revocation",
    "store",
    "subnet",
    "trust",
]
