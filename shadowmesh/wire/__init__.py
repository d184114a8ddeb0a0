"""The protocol without input or output: bytes, times and randomness in, bytes and events out.

Nothing below this package imports gevent, sockets, files, clocks, logging or Flask, so that every
machine runs in a test as it runs in the daemon. Source: the protocol text of the documentation.
"""
