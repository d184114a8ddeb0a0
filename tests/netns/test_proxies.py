"""The tunnel through reverse proxies, which end TLS or pass it through."""

from __future__ import annotations

import pytest

from shadowmesh.netlab import Net
from tests.lab import proxies
from tests.lab.pair import make_pair

pytestmark = pytest.mark.netns


@pytest.mark.parametrize("kind", proxies.Kind)
def test_a_tunnel_through_a_proxy_survives_its_restart(kind, tmp_path):
    if not proxies.installed(kind):
        pytest.skip(f"needs {kind.value}")
    with Net() as net:
        pair = make_pair(net, tmp_path)
        with proxies.Proxy(net, kind, pair.right.host, tmp_path) as proxy:
            pair.left.settings["peer.address"] = proxy.endpoint
            pair.start().connect()
            pair.assert_pings()
            direct = kind is proxies.Kind.HAPROXY_TCP
            for daemon in pair:
                expected = "direct" if direct else "proxied-or-intercepted"
                assert daemon.status()["tls_path"] == expected
            assert pair.left.host.ping(pair.right.tunnel_ip, size=1472, dont_fragment=True).complete
            proxy.stop()
            pair.left.wait_for(15, state="connecting")
            proxy.start()
            pair.await_pings(15)
            pair.await_connected()
            pair.assert_pings()
        for daemon in pair:
            daemon.kill()
        pair.assert_logs_clean()


def test_a_proxy_that_ends_tls_is_refused_where_direct_tls_is_required(tmp_path):
    kind = next((k for k in (proxies.Kind.NGINX, proxies.Kind.HAPROXY) if proxies.installed(k)), 0)
    if not kind:
        pytest.skip("needs nginx or haproxy")
    with Net() as net:
        pair = make_pair(net, tmp_path, left={"websocket.require_direct_tls": True})
        with proxies.Proxy(net, kind, pair.right.host, tmp_path) as proxy:
            pair.start()
            code, answer = pair.left.api("POST", "/connect", {"peer": proxy.endpoint})
            assert code == 502
            assert "TLS" in answer["error"]["message"]
            pair.disconnect()
            pair.connect()  # straight to the peer
            assert pair.left.status()["tls_path"] == "direct"
        for daemon in pair:
            daemon.kill()
