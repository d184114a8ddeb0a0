"""The data plane in C: what `_fastpath` is compiled from.

Owns: the way of a frame, from the TAP to the sealed bytes of a link or a socket and back, and the
threads on it; `openssl` is the TLS below a link, `bench` times the way, `hooks` lets tests call its
functions one by one. Does not know: Python objects, configuration, HTTP, logging.
"""

#: what the rest of the program may import; `_fastpath` beside this folder is the face of the rest
__all__ = ["bench", "openssl"]
