"""The handshake of protocol sections 3 to 5: three messages, two machines, the keys that come out.

Owns: the bytes of the messages, the Noise state behind them, what is refused in them. Does not
know: when a handshake takes place (`wire.session`), what carries it.
"""

#: what the rest of the program may import; all else is private
__all__ = ["agreement", "machines", "messages"]
