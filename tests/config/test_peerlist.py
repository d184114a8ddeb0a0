"""`peers:` of the file: what a list may hold, what is wrong with one, what changes in one."""

from __future__ import annotations

import json
from ipaddress import ip_address

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shadowmesh import config
from shadowmesh.base.constants import MAX_MACS_PER_PEER, MAX_PEERS, MODE_PIN, MODE_PSK
from shadowmesh.base.errors import ConfigError
from shadowmesh.config import HostPort, values, yamlfile
from shadowmesh.config.model import PeerEntry
from shadowmesh.config.schema import PEER_KEYS
from shadowmesh.keys.identity import Identity, format_public_key

PSK = "5f1d0c9e8b7a6f5e4d3c2b1a09f8e7d6c5b4a39281706f5e4d3c2b1a0f1e2d3c"


def key(number: int) -> str:
    """Return the public key of a machine, in its text form."""
    return format_public_key(Identity.from_seed(number.to_bytes(32, "big")).public_key)


KEYS = [key(number) for number in range(1, 13)]


def item(name: str, number: int = 1, **more: str) -> str:
    """Return an item of the list, one line for each of its keys."""
    lines = {"name": name, "public_key": KEYS[number], **more}
    return "  - " + "\n    ".join(f"{name}: {text}" for name, text in lines.items()) + "\n"


def peers(*items: str) -> str:
    return "peers:\n" + "".join(items)


# --- What a list says -------------------------------------------------------------------------


def test_a_list_is_a_peer_for_each_of_its_items_in_their_order(load):
    loaded = load(
        peers(
            item("nas", 1),
            item(
                "laptop-2", 2,
                address="laptop.example", auto_connect="false",
                tunnel_ips='[10.0.0.3, "fd00::3"]', allowed_macs="own",
            ),
            item("'7'", 3, address='"[2001:db8::1]:9"'),
        )
    )  # fmt: skip
    public = [Identity.from_seed(n.to_bytes(32, "big")).public_key for n in (2, 3, 4)]
    assert loaded.config.peers == (
        PeerEntry("nas", public[0], None, auto_connect=False),
        PeerEntry(
            "laptop-2", public[1], HostPort("laptop.example", 9001), auto_connect=False,
            tunnel_ips=(ip_address("10.0.0.3"), ip_address("fd00::3")), allowed_macs="own",
        ),
        PeerEntry("7", public[2], HostPort("2001:db8::1", 9), auto_connect=True),
    )  # fmt: skip
    assert loaded.config.listed
    assert loaded.config.peer.public_key is None
    assert loaded.sources["peers"] == f"{loaded.path}:1"
    assert loaded.sources["peers.laptop-2"] == f"{loaded.path}:4"
    assert loaded.warnings == ()


@pytest.mark.parametrize(
    ("text", "macs"),
    [
        ("any", "any"),
        ("own", "own"),
        ("['52:54:00:12:34:56', 02-00-00-00-00-0A]", ("525400123456", "02000000000a")),
        ("52:54:00:12:34:56", ("525400123456",)),  # to YAML a number to the base of 60
        ("[52:54:00:12:34:56, 12:34:56:01:02:03]", ("525400123456", "123456010203")),
        ("'52:54:00:12:34:56, 52:54:00:12:34:57'", ("525400123456", "525400123457")),
    ],
)
def test_allowed_macs_may_be_written_in_every_way(load, text, macs):
    (peer,) = load(peers(item("nas", allowed_macs=text))).config.peers
    wanted = macs if isinstance(macs, str) else tuple(map(bytes.fromhex, macs))
    assert peer.allowed_macs == wanted


def test_the_one_of_peer_is_a_list_of_one_without_being_listed(load):
    text = f"peer:\n  public_key: {KEYS[1]}\n  address: a.example\n"
    loaded = load(text).config
    assert loaded.peers == (
        PeerEntry("peer", loaded.peer.public_key, HostPort("a.example", 9001), auto_connect=True),
    )
    assert not loaded.listed


@pytest.mark.parametrize("text", ["", "peer:\n", "peers:\n", "peers: ~\n"])
def test_without_any_peer_there_is_one_that_names_nobody(load, text):
    loaded = load(text).config
    assert loaded.peers == (PeerEntry("peer", None, None, auto_connect=False),)
    assert (loaded.listed, loaded.mode) == (False, 0)


def test_an_empty_list_lets_nobody_in_and_is_warned_of(load):
    loaded = load("peers: []\n")
    assert (loaded.config.peers, loaded.config.listed) == ((), True)
    (warning,) = loaded.warnings
    assert "no peer is accepted" in warning


@pytest.mark.parametrize(("text", "psk"), [("", 0), (f"encryption:\n  key: {PSK}\n", MODE_PSK)])
def test_every_peer_of_a_list_is_pinned(load, text, psk):
    assert load(text + peers(item("nas"))).config.mode == MODE_PIN | psk


def test_the_empty_peer_of_the_example_may_stand_beside_a_list(load):
    text = 'peer:\n  address: ""\n  public_key: ""\n' + peers(item("nas"))
    assert [peer.name for peer in load(text).config.peers] == ["nas"]


def test_a_list_of_the_most_peers_is_taken_and_one_more_refused(load, problem):
    items = [f"  - {{name: p{n}, public_key: {key(n)}}}\n" for n in range(1, MAX_PEERS + 2)]
    assert len(load(peers(*items[:-1])).config.peers) == MAX_PEERS
    found = problem(peers(*items))
    assert (found.line, found.key) == (MAX_PEERS + 2, "peers")
    assert "at most 1024" in found.message


# --- What is wrong with one -------------------------------------------------------------------

WRONG = {
    "name": [
        "''", "-a", "a-", "a_b", "a.b", "a b", "a" * 64, "bücher", "Nas", "'a,b'", "12", "yes", "[a]",
    ],
    "public_key": ["''", "x", KEYS[1][:-1], "~", "12", f"[{KEYS[1]}]"],
    "address": ["9001", "https://nas", "0.0.0.0", "[a]", "10.0.0.9", "localhost", "127.0.0.1:9001"],
    "auto_connect": ["maybe", "~", "1", "'true'"],
    "tunnel_ips": [
        "10.0.0.3/24", "x", "[10.0.0.3, 10.0.0.3]", "127.0.0.1", "224.0.0.1", "fe80::1%eth0", "'::'",
        "10.0.0.1", "[[10.0.0.3]]", "[1]", "'10.0.0.3,'", ",".join(f"10.0.0.{n}" for n in range(2, 11)),
        "'::ffff:10.0.0.3'", "0.1.2.3", "12",
    ],
    "allowed_macs": [
        "none", "''", "~", "[]", "[any, own]", "52:54:00:12:34", "52-54:00:12:34:56", "'5254.0012.3456'",
        "03:00:00:00:00:01", "00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "true", "{a: b}",
        "[52:54:00:12:34:56, 52-54-00-12-34-56]", "[[52:54:00:12:34:56]]", "[true]",
        "'" + ",".join(f"02:00:00:00:{n >> 8:02x}:{n & 255:02x}" for n in range(257)) + "'",
    ],
}  # fmt: skip


def test_the_table_of_wrong_values_covers_every_key():
    assert WRONG.keys() == PEER_KEYS.keys()


@pytest.mark.parametrize("attribute", WRONG)
def test_wrong_values_are_refused_with_the_peer_and_the_line_of_the_key(problem, attribute):
    for text in WRONG[attribute]:
        lines = {"name": "nas", "public_key": KEYS[1], attribute: text}
        found = problem(peers(item(**{**lines, "number": 1})))
        line = 2 + list(lines).index(attribute)
        name = "peers.name" if attribute == "name" else f"peers.nas.{attribute}"
        assert (found.line, found.key) == (line, name), text
        assert "\n" not in str(found)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("peers: nas\n", 1, "peers: must be a list of peers"),
        ("peers: {nas: x}\n", 1, "peers: must be a list of peers"),
        ("peers: {}\n", 1, "peers: must be a list of peers"),
        ("peers:\n  nas:\n    public_key: x\n", 1, "peers: must be a list of peers"),
        ("peers:\n  - nas\n", 2, "peers: must be a peer with its keys, which begins with `- name:`"),
        ("peers:\n  -\n", 2, "peers: must be a peer with its keys"),
        ("peers:\n  - [nas]\n", 2, "peers: must be a peer with its keys"),
        (f"peers:\n  - public_key: {KEYS[1]}\n", 2, "peers: has no name, a DNS label"),
        ("peers:\n  - name: nas\n", 2, "peers.nas: has no public_key, which `shadowmesh pubkey`"),
        (peers(item("nas", pubkey="x")), 4, 'peers.nas: unknown key "pubkey"; did you mean "public_key"?'),
        (peers(item("nas", adress="x")), 4, 'peers.nas: unknown key "adress"; did you mean "address"?'),
        (peers(item("nas", mtu="x")), 4, 'peers.nas: unknown key "mtu"'),
        (peers(item("nas", auto_connect="true")), 4, "nas.auto_connect: is true, but the peer has no address"),
        (peers(item("Nas")), 2, "peers.name: must be a DNS label, 1 to 63 lower-case letters"),
        (peers(item("Nas")), 2, 'got "Nas"; write "nas"'),
        (peers(item("nas", tunnel_ips="10.0.0.3/24")), 4, "write 10.0.0.3, without prefix length"),
        (peers(item("nas", tunnel_ips="10.0.0.1")), 4, "is this machine's own, from network.local_ip"),
        (peers(item("nas", address="10.0.0.3")), 4, "the network inside the tunnel"),
        ("peers:\n  - name: a\n    name: b\n", 3, "stands twice, first on line 2"),
        ("peers:\n  - &a {}\n", 2, "anchors"),
        ("peers: &a []\n", 1, "anchors"),
        ("peers:\n  - *a\n", 2, "aliases"),
        ("peers:\n  - !x {}\n", 2, "tags"),
        ("peers:\n  - name: &a nas\n", 2, "anchors"),
        ("peers: []\npeers: []\n", 2, "the section stands twice, first on line 1"),
        ("peer: []\n", 1, "peer: must be a section of keys"),
        ("pears: []\n", 1, 'unknown section "pears"; did you mean "peers"?'),
    ],
)  # fmt: skip
def test_a_list_of_the_wrong_form_is_refused_with_the_line(problems, text, line, words):
    matching = [found for found in problems(text) if words in str(found)]
    assert matching, problems(text)
    assert line in {found.line for found in matching}


def test_everything_wrong_with_all_peers_is_reported_at_once(problems):
    text = peers(
        item("nas", 1, address="x/y"), item("b", 2, auto_connect="7"), "  - x\n", item("c", 1)
    )
    found = problems(text + "network:\n  mtu: 5\n")
    assert sorted(one.line for one in found) == [4, 7, 8, 12]


def test_of_very_many_mistakes_the_first_are_shown_and_the_rest_counted(problems):
    found = problems("peers:\n" + "  - {}\n" * 500)
    assert len(found) == yamlfile.MAX_PROBLEMS + 1
    assert f"has {2 * 500 - yamlfile.MAX_PROBLEMS} more mistakes" in found[-1].message


def test_of_very_many_addresses_inside_the_tunnel_the_first_are_shown(problems):
    inside = (
        f"  - {{name: p{n}, public_key: {key(n)}, address: 10.0.0.{n}}}\n" for n in range(1, 101)
    )
    found = problems(peers(*inside))
    assert len(found) == yamlfile.MAX_PROBLEMS + 1
    assert f"has {100 - yamlfile.MAX_PROBLEMS} more mistakes" in found[-1].message


# --- What no two peers may share --------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "attribute", "words"),
    [
        ({"name": "a"}, "name", "is the name of peer a on line 2, too; each peer has its own"),
        ({"public_key": KEYS[1]}, "public_key", "is the key of peer a on line 3, too"),
        (
            {"address": "H.example:9001"}, "address",
            "H.example:9001 is the address of peer a on line 4, too",
        ),
        ({"tunnel_ips": "fd00:0::9"}, "tunnel_ips", "fd00::9 is the address of peer a on line 5"),
    ],
)  # fmt: skip
def test_what_two_peers_share_is_refused_with_the_lines_of_both(problem, more, attribute, words):
    first = item("a", 1, address="h.example", tunnel_ips='[10.0.0.9, "fd00::9"]')
    second = item(
        **{"name": "b", "number": 2, "address": "i.example", "tunnel_ips": "10.0.0.8", **more}
    )
    found = problem(peers(first, second))
    line = 6 + ["name", "public_key", "address", "tunnel_ips"].index(attribute)
    assert (found.line, found.key) == (line, f"peers.{more.get('name', 'b')}.{attribute}")
    assert words in found.message


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (f"peer:\n  public_key: {KEYS[2]}\n", "peer.public_key"),
        ('peer:\n  public_key: ""\n  address: a.example\n', "peer.address"),
        ("peer:\n  auto_connect: false\n", "peer.auto_connect"),
    ],
)
def test_peer_and_peers_at_once_are_refused_with_the_lines_of_both(problem, text, name):
    found = problem(peers(item("nas")) + text)
    assert (found.line, found.key) == (3 + text.count("\n"), name)
    assert f"cannot stand beside peers ({found.source}:1)" in found.message


def test_peer_of_a_flag_beside_a_list_is_refused(problem):
    found = problem(peers(item("nas")), {"peer.address": "a.example"})
    assert (found.source, found.key) == ("flag --peer.address", "peer.address")


def test_a_list_in_the_environment_is_refused_and_not_overlooked(problem):
    for name in ("SHADOWMESH_PEERS", "SHADOWMESH_PEERS_NAS"):
        found = problem("", {}, {name: "nas"})
        assert "can stand in the file only" in found.message


# --- Report and reload ------------------------------------------------------------------------


def test_the_list_is_shown_with_the_source_of_each_peer(load):
    text = peers(
        item("nas", 1, address="a.example", allowed_macs="[52:54:00:12:34:56]"),
        item("b", 2, tunnel_ips="10.0.0.3"),
    )
    loaded = load(f"encryption:\n  key: {PSK}\n{text}")
    assert config.redacted(loaded).partition("\npeers:")[2].partition("\nmesh:")[
        0
    ].splitlines() == [
        f"  # {loaded.path}:3",
        f'  - name: "nas"  # {loaded.path}:4',
        f'    public_key: "{KEYS[1]}"',
        '    address: "a.example:9001"',
        "    auto_connect: true",
        "    tunnel_ips: []",
        '    allowed_macs: ["52:54:00:12:34:56"]',
        f'  - name: "b"  # {loaded.path}:8',
        f'    public_key: "{KEYS[2]}"',
        '    address: ""',
        "    auto_connect: false",
        '    tunnel_ips: ["10.0.0.3"]',
        '    allowed_macs: "any"',
    ]
    assert PSK not in config.redacted(loaded)
    shown = config.as_json(loaded)["peers"]
    assert shown[1] == {
        "name": "b", "public_key": KEYS[2], "address": "", "auto_connect": False,
        "tunnel_ips": ["10.0.0.3"], "allowed_macs": "any", "source": f"{loaded.path}:8",
    }  # fmt: skip
    json.dumps(shown)
    assert config.as_json(load(""))["peers"] is None
    assert config.as_json(load("peers: []\n"))["peers"] == []


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        (peers(item("a", 1), item("b", 2)), ()),
        (peers(item("b", 2), item("a", 1)), ()),
        (peers(item("a", 1)), ("peers.b",)),
        (peers(item("a", 1), item("b", 2), item("c", 3)), ("peers.c",)),
        (peers(item("a", 3), item("b", 2, allowed_macs="own")), ("peers.a", "peers.b")),
        ("peers: []\n", ("peers.a", "peers.b")),
        (f"peer:\n  public_key: {KEYS[1]}\n", ("peer.public_key", "peers.a", "peers.b")),
    ],
)
def test_a_reload_applies_the_list_and_names_the_peers_that_changed(load, text, changed):
    old, new = load(peers(item("a", 1), item("b", 2))), load(text)
    assert config.diff(old.config, new.config) == (changed, ())
    found = config.in_force(old, new)
    assert found.config.peer_list == new.config.peer_list
    assert found.config.peer == new.config.peer
    assert found.sources == new.sources


def test_the_first_list_is_named_also_when_it_is_empty(load):
    old, new = load("").config, load("peers: []\n").config
    assert config.diff(old, new) == (("peers",), ())


def test_of_very_many_changed_peers_none_is_named(load):
    many = peers(*(f"  - {{name: p{n}, public_key: {key(n)}}}\n" for n in range(1, 40)))
    assert config.diff(load("peers: []\n").config, load(many).config) == (("peers",), ())


def test_a_reload_keeps_a_table_that_waits_for_a_restart_beside_new_peers(load):
    old, new = load("").config, load("mesh:\n  max_macs: 300\n" + peers(item("a"))).config
    assert config.diff(old, new) == (("peers.a",), ("mesh.max_macs",))
    after = config.reloaded(old, new)
    assert (after.mesh.max_macs, after.peers) == (8192, new.peers)


# --- Any list ---------------------------------------------------------------------------------

names = st.from_regex(r"[a-z0-9](?:[a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
hosts = st.from_regex(r"[a-z]{1,9}\.example", fullmatch=True)
inner = st.ip_addresses(network="10.9.0.0/16").filter(lambda ip: int(ip) & 0xFF not in (0, 255))
macs = st.binary(min_size=6, max_size=6).filter(lambda mac: not mac[0] & 1 and any(mac))
entries = st.fixed_dictionaries(
    {"name": names},
    optional={
        "address": hosts,
        "auto_connect": st.booleans(),
        "tunnel_ips": st.lists(inner.map(str), max_size=3, unique=True),
        "allowed_macs": st.one_of(
            st.sampled_from(["any", "own"]),
            st.lists(macs.map(lambda mac: mac.hex(":")), min_size=1, max_size=4, unique=True),
        ),
    },
)


def distinct(found: list[dict]) -> bool:
    """Whether no two items share what only one peer may have."""
    ips = [ip for one in found for ip in one.get("tunnel_ips", ())]
    addresses = [one["address"] for one in found if "address" in one]
    whole = [[one["name"] for one in found], ips, addresses]
    return all(len(set(each)) == len(each) for each in whole)


def sensible(found: dict) -> bool:
    return not found.get("auto_connect") or "address" in found


lists = (
    st.lists(entries.filter(sensible), max_size=len(KEYS))
    .filter(distinct)
    .map(
        lambda found: [
            {**one, "public_key": public} for one, public in zip(found, KEYS, strict=False)
        ]
    )
)
#: each example writes the one file anew
anew = settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)


@anew
@given(lists, st.booleans())
def test_any_list_is_read_as_it_was_written_and_prints_to_itself(load, found, flow):
    loaded = load(yaml.safe_dump({"peers": found}, default_flow_style=flow))
    assert [peer.name for peer in loaded.config.peers] == [one["name"] for one in found]
    for peer, one in zip(loaded.config.peers, found, strict=True):
        assert format_public_key(peer.public_key) == one["public_key"]
        assert peer.auto_connect == one.get("auto_connect", "address" in one)
        assert [str(ip) for ip in peer.tunnel_ips] == one.get("tunnel_ips", [])
        macs = one.get("allowed_macs", "any")
        written = peer.allowed_macs
        assert (written if isinstance(written, str) else [m.hex(":") for m in written]) == macs
    assert load(config.redacted(loaded)).config == loaded.config
    assert config.diff(loaded.config, loaded.config) == ((), ())


@anew
@given(lists.filter(lambda found: len(found) > 1), st.data())
def test_any_two_peers_with_one_key_or_name_are_found(load, found, data):
    one, other = data.draw(
        st.lists(st.sampled_from(range(len(found))), min_size=2, max_size=2, unique=True)
    )
    attribute = data.draw(st.sampled_from(["name", "public_key"]))
    found[max(one, other)][attribute] = found[min(one, other)][attribute]
    with pytest.raises(ConfigError) as caught:
        load(yaml.safe_dump({"peers": found}, sort_keys=False))
    (problem,) = caught.value.problems
    assert problem.key.endswith(f".{attribute}")
    assert problem.line > int(problem.message.split(" on line ")[1].split(",")[0])


shapes = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8), st.sampled_from(KEYS)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from([*PEER_KEYS, "x"]), inner, max_size=4),
    ),
    max_leaves=12,
)


@anew
@given(shapes)
def test_anything_in_place_of_the_list_ends_in_a_configuration_or_in_problems_with_lines(
    load, shape
):
    try:
        loaded = load(yaml.safe_dump({"peers": shape}, allow_unicode=True))
    except ConfigError as error:
        assert all(found.line is not None for found in error.problems)
        return
    assert loaded.config.listed == (shape is not None)


@given(st.text(max_size=40))
def test_no_text_makes_a_key_of_a_peer_fail_in_another_way_than_valueerror(text):
    for key in PEER_KEYS.values():
        try:
            key.parse(text)
        except ValueError as error:
            assert str(error)


def test_as_many_macs_as_a_peer_may_have_can_be_listed():
    text = ",".join(f"02:00:00:00:00:{n:02x}" for n in range(MAX_MACS_PER_PEER))
    assert len(values.allowed_macs(text)) == MAX_MACS_PER_PEER
