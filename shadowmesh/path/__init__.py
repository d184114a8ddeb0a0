"""The UDP side: the socket, how the world sees it, and which path carries the frames.

Owns: STUN and NAT detection on the data socket, punching, the choice per session. Does not know:
the WebSocket link, whether a session is wanted.
"""

#: what the rest of the program may import; all else is private
__all__ = ["alarm", "netcheck", "paths", "pings", "stopwatch", "traversal"]
