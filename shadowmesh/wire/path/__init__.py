"""Which UDP path carries the frames of one session, and why; a pure machine.

Owns: the book of the peer's addresses, probing, punching, the search for the path MTU, the choice.
Does not know: sockets, STUN, the session's keys.
"""

#: what the rest of the program may import; all else is private
__all__ = ["candidates", "events", "machine", "rules"]
