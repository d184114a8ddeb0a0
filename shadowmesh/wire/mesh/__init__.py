"""A network of many members, as bytes: its names and keys, invitations, messages, the joining.

Owns: the fixed derivations of mesh-rules A and B, the text of an invitation, the messages of
inner type 11. Does not know: certificates, who may join, what is kept where (`network` does).
"""

#: what the rest of the program may import; all else is private
__all__ = ["chunks", "identifiers", "joining", "messages", "token"]
