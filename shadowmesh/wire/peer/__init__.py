"""One peer: its states, who wins when both sides dial, how long to wait between dials.

Owns: these three rules, as tables and pure functions. Does not know: who carries them out
(`peer.peer`), links, keys, clocks.
"""

#: what the rest of the program may import; all else is private
__all__ = ["backoff", "collision", "states"]
