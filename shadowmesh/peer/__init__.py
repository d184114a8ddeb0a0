"""One peer from wanted to connected, and the manager of all of them.

Owns: dialling and waiting, who is let in, sessions from the first byte to the last. Does not know:
HTTP, what a snapshot looks like, how a device is opened.
"""

#: what the rest of the program may import; all else is private
__all__ = ["manager", "tunnel"]
