"""conf/daemon.yaml is the manual: complete, loadable, and telling the truth about the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shadowmesh import config
from shadowmesh.config.loader import NOBODY
from shadowmesh.config.report import render, value_of
from shadowmesh.config.schema import KEYS, PEER_KEYS
from shadowmesh.keys.identity import Identity, format_public_key

EXAMPLE = Path(__file__).parents[2] / "conf" / "daemon.yaml"
RELAY = EXAMPLE.with_name("relay.yaml")
TEXT = EXAMPLE.read_text(encoding="utf-8")
#: a key whose default is not a constant stands as `  #name: value`
COMMENTED_KEY = re.compile(r"^  #(?=[a-z_]+:)", re.MULTILINE)
#: what the commented keys say is the default of root
ENVIRONMENT = {"HOME": "/root"}
SEEDS = (("left", bytes(range(32))), ("right", bytes(range(1, 33))))


@pytest.fixture
def no_file(tmp_path: Path) -> Path:
    path = tmp_path / "empty.yaml"
    path.touch(mode=0o600)
    return path


@pytest.fixture
def full_example(tmp_path: Path) -> Path:
    path = tmp_path / "daemon.yaml"
    path.write_text(COMMENTED_KEY.sub("  ", TEXT), encoding="utf-8")
    path.chmod(0o600)
    return path


def documentation() -> dict[str, str]:
    """Return, for each key, the comment above it (shared by keys that follow one another)."""
    found: dict[str, str] = {}
    section, comment, fresh = "", "", True
    for line in TEXT.splitlines():
        if re.match(r"^[a-z]+:$", line):
            section, comment = line[:-1], ""
        elif match := re.match(r"^  #?([a-z_]+):( |$)", line):
            found[f"{section}.{match[1]}"] = comment
            fresh = True
        elif line.startswith("  # "):
            comment = line[4:] if fresh else f"{comment} {line[4:]}"
            fresh = False
    return found


def test_the_example_loads_as_it_is_and_gives_the_defaults(no_file: Path):
    example = config.load(EXAMPLE, {}, ENVIRONMENT, is_root=True).config
    assert example == config.load(no_file, {}, ENVIRONMENT, is_root=True).config


def test_the_example_with_its_commented_keys_names_every_key_once(full_example: Path):
    loaded = config.load(full_example, {}, ENVIRONMENT, is_root=True)
    unnamed = [name for name, source in loaded.sources.items() if source == "default"]
    assert unnamed == []


@pytest.mark.parametrize("name", KEYS)
def test_the_example_documents_the_default_of(name: str, full_example: Path, no_file: Path):
    documented = config.load(full_example, {}, ENVIRONMENT, is_root=True).config
    default = config.load(no_file, {}, ENVIRONMENT, is_root=True).config
    assert value_of(documented, KEYS[name]) == value_of(default, KEYS[name])


@pytest.mark.parametrize("name", KEYS)
def test_the_example_says_whether_a_reload_applies(name: str):
    words = documentation()[name]
    assert ("[reload]" in words, "[restart]" in words) == (KEYS[name].reload, not KEYS[name].reload)


def test_the_example_and_the_help_give_the_same_ranges():
    pages = documentation()
    for key in KEYS.values():
        for limits in re.findall(r"[0-9]+[a-z]* to [0-9]+[a-z]*", key.meaning):
            assert limits in pages[key.name], key.name


def test_the_range_in_the_help_is_the_range_of_the_code():
    for key in KEYS.values():
        for low, high in re.findall(r"([0-9]+[a-z]*) to ([0-9]+[a-z]*)", key.meaning):
            for limit in (low, high):
                key.parse(limit)
            unit = high.lstrip("0123456789")
            with pytest.raises(ValueError):
                key.parse(f"{int(high.removesuffix(unit)) + 1}{unit}")


def test_the_example_holds_no_usable_key():
    assert not re.search(r"[0-9a-fA-F]{64}", TEXT)
    assert render(config.load(EXAMPLE, {}, ENVIRONMENT, is_root=True).config.encryption.key) == '""'


def test_the_two_machine_example_connects_one_to_the_other(tmp_path: Path):
    # the sides' files: indented comment lines after "Its whole file:"
    blocks = re.findall(r"Its whole file:\n#\n((?:#   .*\n)+)", TEXT)
    psk = bytes(range(32)).hex()
    public = {side: format_public_key(Identity.from_seed(seed).public_key) for side, seed in SEEDS}
    sides = []
    for number, block in enumerate(blocks):
        text = block.replace("#   ", "").replace("THE 64 DIGITS OF genpsk", psk)
        text = text.replace("THE SAME 64 DIGITS", psk)
        for side, key in public.items():
            text = text.replace(f"PUBLIC KEY OF {side}", key)
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        path.chmod(0o600)
        sides.append(config.load(path, {}, ENVIRONMENT, is_root=True))
    left, right = sides
    assert left.warnings == right.warnings == ()
    assert (left.config.mode, right.config.mode) == (3, 3)
    assert left.config.encryption.key == right.config.encryption.key
    assert format_public_key(left.config.peer.public_key) == public["right"]
    assert format_public_key(right.config.peer.public_key) == public["left"]
    assert (left.config.peer.auto_connect, right.config.peer.auto_connect) == (False, True)
    assert left.config.network.local_ip != right.config.network.local_ip
    ours, theirs = left.config.network.local_ip, right.config.network.local_ip
    assert [one.network for one in ours] == [one.network for one in theirs]


def test_the_relay_of_the_package_has_no_device_no_secret_and_nothing_of_the_other_daemon():
    relay = config.load(RELAY, {}, ENVIRONMENT, is_root=True)
    ordinary = config.load(EXAMPLE, {}, ENVIRONMENT, is_root=True).config
    assert relay.config.network.headless
    assert not [
        key.name for key in KEYS.values() if key.secret and relay.sources[key.name] != "default"
    ]
    assert relay.warnings == (NOBODY,)
    assert RELAY.stat().st_mode & 0o444 == 0o444
    one, other = (
        [
            *(getattr(each.daemon, name) for name in ("listen_address", "api_socket", "state_dir")),
            each.websocket.listen_address, each.websocket.tls_cert, each.websocket.tls_key,
            each.nat.udp_port, each.monitoring.prometheus_port,
        ]
        for each in (relay.config, ordinary)
    )  # fmt: skip
    assert not [value for value, theirs in zip(one, other, strict=True) if value == theirs]
    ports = (relay.config.daemon.listen_address.port, relay.config.monitoring.prometheus_port)
    assert ports == (9190, 9191)


def with_keys(text: str) -> str:
    """Fill in the keys of an example: the pre-shared one, and a public key for each name."""
    text = re.sub("THE 64 DIGITS OF genpsk[A-Z, ]*", bytes(range(32)).hex(), text)
    return re.sub(
        "PUBLIC KEY OF ([a-z]+)",
        lambda match: format_public_key(
            Identity.from_seed(match[1].encode().ljust(32, b".")).public_key
        ),
        text,
    )


def load_text(directory: Path, text: str) -> config.LoadedConfig:
    path = directory / "some.yaml"
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    return config.load(path, {}, ENVIRONMENT, is_root=True)


def test_the_example_of_more_than_two_lets_the_laptop_dial_both(tmp_path: Path):
    part = TEXT.partition("# --- More than two ---")[2].partition("# --- The program itself")[0]
    files = re.findall(r"((?:^#   .*\n)+)", part, re.MULTILINE)
    server, laptop = (load_text(tmp_path, with_keys(file.replace("#   ", ""))) for file in files)
    assert server.warnings == laptop.warnings == ()
    assert [(peer.name, peer.auto_connect) for peer in server.config.peers] == [
        ("nas", False), ("laptop", False),
    ]  # fmt: skip
    assert [(peer.name, peer.auto_connect) for peer in laptop.config.peers] == [
        ("server", True), ("nas", True),
    ]  # fmt: skip
    assert server.config.encryption.key == laptop.config.encryption.key
    assert server.config.peers[0].public_key == laptop.config.peers[1].public_key
    assert server.config.mode == laptop.config.mode == 3


def test_the_commented_list_of_the_example_loads_and_has_every_key(tmp_path: Path):
    (block,) = re.findall(r"^#peers:\n(?:#  .*\n)+", TEXT, re.MULTILINE)
    text = re.sub("^#", "", with_keys(block), flags=re.MULTILINE)
    (peer,) = load_text(tmp_path, text).config.peers
    assert (peer.name, peer.auto_connect, peer.allowed_macs) == ("nas", True, "any")
    written = re.findall(
        r"^ +(?:- )?([a-z_]+):", re.sub(r"^ *#.*\n", "", text, flags=re.MULTILINE), re.MULTILINE
    )
    assert written == list(PEER_KEYS)


def test_the_lists_of_the_documentation_load(tmp_path: Path):
    page = (EXAMPLE.parents[1] / "docs" / "deployment.md").read_text(encoding="utf-8")
    section = page.partition("## More than two machines\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```yaml\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        text = re.sub("KEY_OF_([A-Z]+)", lambda m: f"PUBLIC KEY OF {m[1].lower()}", block)
        loaded = load_text(tmp_path, with_keys(text))
        assert loaded.warnings == ()
        assert len(loaded.config.peers) == 2
