"""What everybody may know: numbers, errors, the clock, the log, token buckets, amounts as text.

Owns: the constants of the protocol, the tree of exceptions, the clock of sessions, how a line of
the log looks, what a write to a full disk comes to. Does not know: anything else of this package.
"""

#: what the rest of the program may import; all else is private
__all__ = ["clock", "constants", "errors", "log", "rate", "services", "stdio", "units", "words"]
