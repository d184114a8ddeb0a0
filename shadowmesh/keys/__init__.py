"""Keys: the door to libsodium, keys as text, and the private files that hold them.

Owns: the identity (Ed25519), the rules for pre-shared keys and tokens, how a private file is made
and read. Does not know: the network, the configuration, who uses a key.
"""

#: what the rest of the program may import; all else is private
__all__ = ["api_token", "identity", "mac", "private_file", "psk", "sodium"]
