"""A listed peer that lies: authenticated, and it seals what its own daemon would not let out."""

from __future__ import annotations

import sys

import pytest

from faults.saboteur import FLOODS
from shadowmesh.netlab import wait_until
from tests.lab.mesh import PATIENCE_S, assert_pings, fdb, running_mesh, tap_mac, undisturbed

pytestmark = pytest.mark.netns

#: behind one peer, what `allowed_macs` is when it is not given
MOST_MACS = 256
#: of these each single frame is dropped
EXACT = "foreign_mac", "multicast_source", "bad_vlan", "reserved_address"


def test_a_peer_that_lies_is_dropped_under_the_reasons_of_it_and_the_others_feel_nothing(
    directory,
):
    orders = directory / "orders"

    def change(mesh) -> None:
        liar = mesh[3]  # on WSS, so that every frame arrives
        own = liar.command()[1:]
        liar.command = lambda: [sys.executable, "-m", "faults.saboteur", "hostile_frames", *own]
        liar.environment = {"FAULTS_ORDERS": str(orders)}

    with running_mesh(directory, 4, change) as mesh:
        third, liar, victim = mesh[1], mesh[3], mesh[4]
        dropped = dict.fromkeys(FLOODS, 0)

        def counted() -> bool:
            found = victim.peers()[liar.host.label]["counters"]["dropped"]
            dropped.update({name: found.get(name, 0) for name in FLOODS})
            return dropped["mac_limit"] >= FLOODS["mac_limit"] - MOST_MACS

        with undisturbed(mesh, liar, between=(third, victim)):
            macs = (tap_mac(daemon).hex() for daemon in (victim, third))
            draft = orders.with_suffix(".draft")
            draft.write_text(" ".join((victim.host.ipv4, *macs)))
            draft.rename(orders)
            wait_until(counted, PATIENCE_S, "an account of what it sends", interval_s=0.5)
            assert_pings(victim, third)
        assert {name: dropped[name] for name in EXACT} == {name: FLOODS[name] for name in EXACT}
        assert dropped["flood_limit"] > FLOODS["flood_limit"] // 4
        table = fdb(victim)
        theirs = [entry for entry in table.values() if entry["peer"] == liar.host.label]
        assert 100 < len(theirs) <= MOST_MACS
        assert table[tap_mac(third), None]["peer"] == third.host.label
        assert not any(
            third.peers()[liar.host.label]["counters"]["dropped"].get(name) for name in FLOODS
        )
        mesh.await_sessions()
        assert_pings(victim, liar)
