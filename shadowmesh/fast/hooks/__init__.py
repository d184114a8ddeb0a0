"""Functions of the data plane for tests and measurements to call one by one.

Owns: nothing that the daemon uses; the daemon does not import it, and wheels do not carry it. Does not
know: anything but the C functions under test; every buffer that is handed to one is allocated in just
its size (`memory`).
"""

#: what the rest of the program may import; all else is for the tests
__all__ = ["bench"]
