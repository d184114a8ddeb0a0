"""Pre-shared keys: the secret that two peers may share besides their identities.

Owns: the text form, 64 hexadecimal digits for 32 bytes, and what is refused as a key. Does not
know: where it is configured, and what the handshake makes of it. Source: protocol section 2.
"""

from __future__ import annotations

import string
from typing import Final

from shadowmesh.base.constants import PSK_BYTES, PSK_MIN_DISTINCT_BYTES
from shadowmesh.keys import sodium

#: the key printed in the document that described this program; everybody knows it
_SAMPLE_PSK: Final = bytes.fromhex("0123456789abcdef" * 4)


def generate_psk() -> str:
    """Return a new pre-shared key in its text form, as ``shadowmesh genpsk`` prints it."""
    return sodium.random_bytes(PSK_BYTES).hex()


def parse_psk(text: str) -> bytes:
    """Return the 32 bytes of a pre-shared key.

    Raises:
        ValueError: not 64 hexadecimal digits, all zero, the sample key of the documentation, or
            fewer than 16 distinct byte values. The text never holds the key or a part of it.
    Source: protocol section 2.
    """
    hint = "make one with `shadowmesh genpsk`"
    if len(text) != 2 * PSK_BYTES:
        raise ValueError(
            f"a pre-shared key is {2 * PSK_BYTES} hexadecimal digits, this has {len(text)}"
            f" characters; {hint}"
        )
    if not set(text) <= set(string.hexdigits):
        raise ValueError(f"a pre-shared key has only the characters 0-9, a-f and A-F; {hint}")
    psk = bytes.fromhex(text)
    if not any(psk):
        raise ValueError(f"a pre-shared key of zeros is no secret; {hint}")
    if psk == _SAMPLE_PSK:
        raise ValueError(f"this is the sample key of the documentation; {hint}")
    if len(set(psk)) < PSK_MIN_DISTINCT_BYTES:
        # 32 random bytes have fewer than 16 distinct values about once in 10**13 draws.
        raise ValueError(
            f"this pre-shared key has fewer than {PSK_MIN_DISTINCT_BYTES} distinct byte values,"
            f" so it was not drawn at random; {hint}"
        )
    return psk
