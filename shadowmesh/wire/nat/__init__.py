"""What kind of NAT stands between us and the world: STUN messages and what they tell.

Owns: the bytes of STUN (RFC 8489, RFC 5780), repeating a request, the questions and the verdict.
Does not know: sockets, which address is told to the peer (`wire.path.candidates`).
"""

#: what the rest of the program may import; all else is private
__all__ = ["detector", "result"]
