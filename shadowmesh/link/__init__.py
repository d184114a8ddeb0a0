"""One WebSocket link on TLS to a peer: dialled or accepted, carried, ended.

Owns: TCP, TLS, the upgrade, who may connect before proving anything, the two greenlets of a link.
Does not know: handshakes, sessions, whether a link is wanted, frames, which a thread of the data plane
moves once the peer is authentic.
"""

#: what the rest of the program may import; all else is private
__all__ = ["dial", "known", "link", "peer_port", "route", "tcp", "tls"]
