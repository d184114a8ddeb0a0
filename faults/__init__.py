"""The fault catalogue, run: what is done to two real daemons, and what must hold afterwards.

Owns: the rows, the invariants that each must leave, the table. Does not know: the inside of the
daemon; `saboteur` alone does, because a peer that is authenticated and hostile has to be made.
"""
