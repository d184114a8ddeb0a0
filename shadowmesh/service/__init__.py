"""The process: puts the parts together, and is looked after by systemd.

Owns: the command line of shadowmesh-daemon, the order of start and stop, signals, what others see
of the live objects (`view`). Does not know: routes, states, frames.
"""

#: what the rest of the program may import; all else is private
__all__ = ["daemon", "start"]
