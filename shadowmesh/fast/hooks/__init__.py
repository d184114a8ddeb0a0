"""Functions of the data plane for tests to call one by one.

Owns: nothing that the program uses, so that wheels do not carry it. Does not know: anything but the
C functions under test; every buffer that is handed to one is allocated in just its size (`memory`).
"""
