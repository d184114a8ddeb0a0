from __future__ import annotations

from shadowmesh.keys.mac import stable_mac


def test_a_stable_mac_is_unicast_local_and_depends_on_the_seed():
    macs = {stable_mac(bytes([n])) for n in range(64)}
    assert len(macs) == 64
    assert all(len(mac) == 6 and mac[0] & 0x03 == 0x02 for mac in macs)
    assert stable_mac(b"seed") == stable_mac(b"seed")
