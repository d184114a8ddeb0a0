"""The data plane in C: what `_fastpath` is compiled from, and `hooks` for tests and measurements.

Owns: the way of a frame, from the TAP to the sealed bytes of a link or a socket and back, and the
threads on it. Does not know: Python objects, configuration, HTTP, logging.
"""

#: what the rest of the program may import; `_fastpath` beside this folder is the face of the rest
__all__ = ["hooks"]
