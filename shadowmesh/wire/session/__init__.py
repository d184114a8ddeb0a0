"""One session: its first handshake, its rekeys, and how long each set of keys lives.

Owns: the rules of protocol section 7 and what they ask their owner to do (`events`). Does not know:
what seals a record, links, paths.
"""

#: what the rest of the program may import; all else is private
__all__ = ["events", "machine"]
