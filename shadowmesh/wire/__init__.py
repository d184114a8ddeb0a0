"""The protocol without input or output: bytes, times and randomness in, bytes and events out.

Owns: every message and record as bytes, every rule about them, every state and deadline. Does not
know: gevent, sockets, files, clocks, logging or Flask, so that every machine runs in a test as it
runs in the daemon. Source: the protocol text of the documentation.

::

    handshake/  three messages, two machines        session/   first handshake, rekeys, end of keys
    path/       which UDP path, probes, punching    nat/       STUN, and what it tells of a NAT
    peer/       states, collision, back-off         control    small records
    liveness    is the WSS link alive               websocket  the upgrade, close frames
    standstill  does it get anywhere        mesh/      a network: names, keys, messages
"""

#: what the rest of the program may import; all else is private
__all__ = [
    "control",
    "handshake",
    "liveness",
    "mesh",
    "nat",
    "path",
    "peer",
    "session",
    "standstill",
    "websocket",
]
