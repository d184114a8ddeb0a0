"""Home routers: a private network behind each kind of NAT, and a STUN server to look at them.

        host 192.168.1.2 --- ln 192.168.1.1 [ router ] eth0 198.51.100.n --- switch

Kinds (mapping / filtering, RFC 4787): the Linux default is port-restricted.
"""

from __future__ import annotations

import re
import shutil
from enum import StrEnum
from typing import TYPE_CHECKING, Self

from shadowmesh.netlab import wait_until

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from shadowmesh.netlab import Host, Net

INSIDE = "192.168.1"
STUN_PORT = 3478
LONGER_THAN_ANY_TEST = "30m"  # only a new flow refreshes a map entry


class Kind(StrEnum):
    FULL = "full"
    ADDRESS_RESTRICTED = "address-restricted"
    PORT_RESTRICTED = "port-restricted"
    ADDRESS_DEPENDENT = "address-dependent"
    SYMMETRIC = "symmetric"
    UDP_BLOCKED = "udp-blocked"


OUTWARD = f'oifname "eth0" ip saddr {INSIDE}.0/24'

# A packet for an unknown mapping must find nobody: if the router itself answered or took the
# flow, conntrack would give the inside host another port and cones would look symmetric.
DEAF_ROUTER = """
table ip inp {
  chain inp {
    type filter hook input priority filter; policy accept;
    iifname "eth0" ct state new meta l4proto udp drop
  }
}
"""
STATEFUL = """
table ip filt {
  chain fltr {
    type filter hook forward priority filter; policy drop;
    iifname "ln" %s
    ct state established,related accept
  }
}
"""
POSTROUTING = """
table ip nat {
  chain post {
    type nat hook postrouting priority srcnat; policy accept;
    %s
  }
}
"""
CONE = f"""
table ip nat {{
  map eim {{
    type inet_service : ipv4_addr . inet_service; flags dynamic, timeout
    timeout {LONGER_THAN_ANY_TEST}; size 65535
  }}
  set seen {{
    type ipv4_addr . inet_service; flags dynamic, timeout
    timeout {LONGER_THAN_ANY_TEST}; size 65535
  }}
  chain pre {{
    type nat hook prerouting priority dstnat; policy accept;
    iifname "eth0" meta l4proto udp %s dnat ip to udp dport map @eim
  }}
  chain post {{
    type nat hook postrouting priority srcnat; policy accept;
    {OUTWARD} meta l4proto udp update @eim {{ udp sport : ip saddr . udp sport }} %s masquerade
    {OUTWARD} masquerade
  }}
}}
"""


def installed() -> bool:
    return all(shutil.which(p) for p in ("turnserver", "turnutils_natdiscovery", "conntrack"))


def rules(kind: Kind, public_address: str) -> str:
    match kind:
        case Kind.FULL:
            nat = CONE % ("", "")
        case Kind.ADDRESS_RESTRICTED:
            nat = CONE % (
                "ip saddr . udp dport @seen",
                "update @seen { ip daddr . udp sport }",
            )
        case Kind.PORT_RESTRICTED:
            nat = POSTROUTING % f"{OUTWARD} masquerade" + STATEFUL % "accept"
        case Kind.SYMMETRIC:
            nat = POSTROUTING % f"{OUTWARD} masquerade fully-random" + STATEFUL % "accept"
        case Kind.ADDRESS_DEPENDENT:
            mapping = (
                f"{OUTWARD} meta l4proto udp snat ip to {public_address} : "
                "jhash ip daddr . udp sport mod 20000 seed 0x5eed offset 40000"
            )
            nat = POSTROUTING % f"{mapping}\n{OUTWARD} masquerade" + STATEFUL % "accept"
        case Kind.UDP_BLOCKED:
            # Without UDP nothing but what a browser needs; 9001 is where our own peers listen.
            passes = "tcp dport { 80, 443, 9001 } accept"
            nat = POSTROUTING % f"{OUTWARD} masquerade" + STATEFUL % passes
    return nat + DEAF_ROUTER


class Router:
    """A NAT router on the switch and the private network behind it."""

    def __init__(self, net: Net, kind: Kind, label: str) -> None:
        self.net = net
        self.wan = net.host(f"{label}-router")
        self.wan.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
        self.kind = kind
        self.inside = net.namespace(label, self.wan.number)
        self.inside.ipv4, self.inside.ipv6 = f"{INSIDE}.2", ""
        self.wan.ip(
            f"link add ln type veth peer name eth0 netns {self.inside.namespace}",
            f"address add {INSIDE}.1/24 dev ln",
            "link set ln up",
        )
        self.inside.ip(
            f"address add {self.inside.ipv4}/24 dev eth0",
            "link set eth0 up",
            f"route add default via {INSIDE}.1",
        )
        self.become(kind)

    def become(self, kind: Kind) -> None:
        """Change the kind, as after a reboot: no rule and no mapping is left."""
        self.kind = kind
        self.wan.nft(f"flush ruleset\n{rules(kind, self.wan.ipv4)}")
        self.forget()

    def forget(self) -> None:
        """Lose all mappings."""
        self.wan.run("conntrack", "-F")

    def forward_tcp(self, port: int) -> None:
        """Hand TCP `port` of the public address to the inside host, as a user sets it up."""
        self.wan.nft(
            "table ip portforward {\nchain pre {\n"
            "type nat hook prerouting priority dstnat\n"
            f'iifname "eth0" tcp dport {port} dnat ip to {self.inside.ipv4}\n'
            "}\n}\n"
        )
        if self.kind not in {Kind.FULL, Kind.ADDRESS_RESTRICTED}:
            self.wan.nft(f'insert rule ip filt fltr iifname "eth0" tcp dport {port} accept\n')


class StunServer:
    """coturn's STUN server with two addresses (RFC 5780), on a host of its own."""

    def __init__(self, net: Net, directory: Path) -> None:
        self.host = net.host("stun")
        self.other_ipv4 = "198.51.100.250"
        self.host.ip(f"address add {self.other_ipv4}/24 dev eth0")
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"{self.host.ipv4}:{STUN_PORT}"

    def __enter__(self) -> Self:
        self._process = self.host.popen(
            "turnserver", "-n", "--stun-only", "--no-auth", "--no-cli", "--no-tls", "--no-dtls",
            "--listening-ip", self.host.ipv4, "--listening-ip", self.other_ipv4,
            "--listening-port", str(STUN_PORT), "--log-file", "stdout",
            "--pidfile", str(self._directory / "turnserver.pid"),
            "--userdb", str(self._directory / "turn.sqlite"),
            log=self._directory / "turnserver.log",
        )  # fmt: skip
        wait_until(self._listens, 10, "STUN server listens")
        return self

    def _listens(self) -> bool:
        listing = self.host.run("ss", "-Hlnu", "sport", "=", f":{STUN_PORT}").stdout
        return self.host.ipv4 in listing and self.other_ipv4 in listing

    def __exit__(self, *exception: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)

    def discover(self, host: Host) -> tuple[str, str]:
        """Return mapping and filtering as coturn's client words them; empty without an answer."""
        report = host.run(
            "turnutils_natdiscovery", "-m", "-f", self.host.ipv4, check=False, timeout_s=60
        ).stdout
        mapping = re.search("NAT with (.*) Mapping!", report)
        filtering = re.search("NAT with (.*) Filtering!", report)
        return mapping[1] if mapping else "", filtering[1] if filtering else ""
