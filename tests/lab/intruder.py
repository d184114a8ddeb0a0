"""Somebody on a host of its own who knocks at a relay: `python -m tests.lab.intruder TOKEN SECONDS`.

It shows an invitation with a secret that is wrong, or says nothing behind the handshake, from many
greenlets at once and as fast as it is answered. In the end it prints what came of that, as JSON.
"""

from __future__ import annotations

import collections
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import gevent

from shadowmesh.base.errors import ControlError
from shadowmesh.config import HostPort
from shadowmesh.keys.identity import Identity
from shadowmesh.wire.mesh.messages import Join
from shadowmesh.wire.mesh.token import Token
from tests.peer.machines import Machine

AT_ONCE = 24


def main(text: str, seconds: float) -> None:
    token = Token.parse(text)
    (relay,) = token.relays
    host, _, port = relay.address.rpartition(":")
    found: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as directory:
        machine = Machine(Path(directory), listen=False).start()
        until = time.monotonic() + seconds
        jobs = [
            gevent.spawn(_knock, machine, HostPort(host, int(port)), relay.public_key, token,
                         until, found, silent=number % 3 == 0)
            for number in range(AT_ONCE)
        ]  # fmt: skip
        gevent.joinall(jobs)
        machine.stop()
    print(json.dumps(found), flush=True)


def _knock(machine, address, key, token, until, found, *, silent):
    identity = Identity.from_seed(bytes([len(found) + 1]) * 32)
    wrong = replace(token, secret=bytes(16))

    def question(_result):
        if silent:
            gevent.sleep(3)
        return Join(invitation_id=wrong.invitation_id, proof=bytes(32), name="intruder")

    while time.monotonic() < until:
        try:
            answer = machine.manager.ask_to_join(address, identity, key, question, 5)
            found[getattr(answer, "reason", "joined")] += 1
        except ControlError as error:
            found[type(error).__name__] += 1
        gevent.sleep(0)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
