"""The MAC address that goes with a key.

Owns: how it is made. Does not know: the device that gets it.
"""

from __future__ import annotations

import hashlib
from typing import Final

MAC_BYTES: Final = 6


def stable_mac(seed: bytes) -> bytes:
    """Derive a unicast, locally administered MAC from something that stays, such as a public key.

    With the kernel's random one the neighbours would send to the old address for seconds after
    each restart of the daemon, until their ARP entries run out.
    """
    digest = hashlib.blake2s(seed, digest_size=MAC_BYTES, person=b"sm-mac").digest()
    return bytes([(digest[0] | 0x02) & 0xFE]) + digest[1:]
