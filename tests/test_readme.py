"""README.md and docs/ are true: what they name exists, what they tell to type works as printed.

Fenced blocks say in their first line where they are typed: ``sh server``, ``sh left``, ``sh both``.
``text laptop`` and ``text demo`` are what such a block, or the demo, prints. The commands are typed
on machines that are network and mount namespaces (tests/lab/machine.py, which also says what stands
in for systemd there): the three of a network, and the two of a pair. The fixtures look whether
anything has escaped from there.

What is not typed is in `NOT_TYPED`, with the reason. In the place of what `make build` makes in the
clone is this checkout, in which it was made.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from packaging.requirements import Requirement

from shadowmesh import _fastpath
from shadowmesh.cli.group import NameOrCommands
from shadowmesh.cli.program import program
from shadowmesh.config import flag_names
from shadowmesh.config.model import Config
from shadowmesh.netlab import Net, NetlabError, wait_until
from shadowmesh.service.daemon import parse_command_line
from tests.lab.machine import YES, Machine
from tests.lab.proxies import self_signed

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
TEXT = "\n".join(page.read_text() for page in PAGES)
BLOCK = re.compile(r"^```(\w*) ?(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PUBLIC_KEY = re.compile(r"[A-Za-z0-9+/]{43}=")
SHARED_KEY = re.compile(r"\b[0-9a-f]{64}\b")
RECOVERY_KEY = re.compile(r"\bsmr1(?:-[0-9a-z]{4})+")
TOKEN = re.compile(r"\bsm1-[0-9a-z-]+")
NETWORK, PAIR = "Three machines, one Ethernet", "Two machines, step by step"
API, CONFIGURATION = "API and metrics", "Configuration"
TROUBLE = "When something is wrong"
BACKUP, ANOTHER_CA = "Backup and restore", "Another CA"
PORT_443, LANS = "Port 443, alone or behind a web server", "Join two LANs"
#: typed by tests/netns/test_underlay.py, which needs a router between the two
FULL_TUNNEL = "Default route into the tunnel"
#: what the tests below type
SECTIONS = {
    NETWORK,
    PAIR,
    BACKUP,
    ANOTHER_CA,
    TROUBLE,
    API,
    CONFIGURATION,
    PORT_443,
    LANS,
    FULL_TUNNEL,
}
LAN_WAIT_S = 45  # a bridge port with STP forwards after 30 s
#: in which machines that are installed have to become a network, without the time of people
WALK_S = 20


@dataclass(frozen=True, slots=True)
class Block:
    section: str
    language: str
    where: str
    text: str


def sections() -> dict[str, str]:
    """The text below each heading of level 2, by heading."""
    parts = re.split(r"^## (.+)$", TEXT, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def blocks(section: str = "", language: str = "") -> list[Block]:
    return [
        Block(title, *match.groups())
        for title, text in sections().items()
        for match in BLOCK.finditer(text)
        if section in ("", title) and language in ("", match[1])
    ]


def inline_code(text: str = TEXT) -> list[str]:
    """What stands between backticks, outside of blocks."""
    return re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))


def rows(section: str) -> list[list[str]]:
    """The cells of the tables of a section, without head and rule."""
    found = []
    for table in re.findall(r"(?:^\|.*\n)+", sections()[section], re.MULTILINE):
        lines = table.splitlines()[2:]
        found += [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return found


def command_lines() -> list[str]:
    """Every command that the README gives, in blocks (here-documents left out) and inline."""
    typed = [
        re.sub(r"<<'EOF'\n.*?^EOF$", "", block.text, flags=re.DOTALL | re.MULTILINE)
        for block in blocks(language="sh")
    ]
    return [*"".join(typed).splitlines(), *inline_code()]


# --- Cheap checks -----------------------------------------------------------------------------


def test_the_readme_can_be_read_in_one_sitting():
    assert len(PAGES[0].read_text().splitlines()) <= 400


@functools.cache
def printed_texts() -> tuple[str, ...]:
    """Every text in the program's source, `…` where a value is put in."""
    texts = []
    for path in sorted((ROOT / "shadowmesh").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                texts.append(
                    "".join(
                        str(part.value) if isinstance(part, ast.Constant) else "…"
                        for part in node.values
                    )
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return tuple(texts)


def is_printed(message: str) -> bool:
    pattern = re.compile(".*".join(map(re.escape, re.split(" *… *", message))))
    return any(pattern.search(text) for text in printed_texts())


@pytest.mark.parametrize("message", [m for row in rows(TROUBLE) for m in inline_code(row[0])])
def test_a_quoted_message_is_one_that_the_program_prints(message):
    assert len(message) > 8
    assert is_printed(message)


def test_a_message_that_is_printed_nowhere_is_noticed():
    assert not is_printed("cannot reach … because of the weather")


def test_every_path_into_the_repository_leads_somewhere():
    text = " ".join([*inline_code(), *re.findall(r"\]\((\S+?)\)", TEXT)])
    text += " " + TEXT.replace("/opt/shadowmesh/", " ")
    made = ("build", "dist")  # what they hold is not there before it is made
    folders = [path.name for path in ROOT.iterdir() if path.is_dir() and path.name not in made]
    tops = "|".join(map(re.escape, folders))
    paths = set(re.findall(rf"(?<![\w/.-])(?:{tops})/[\w./-]*\w/?", text))
    paths |= {"LICENSE"}
    assert len(paths) > 20
    assert not [path for path in sorted(paths) if not (ROOT / path).exists()]


def test_every_function_on_the_way_of_a_frame_is_where_the_readme_says():
    steps = re.findall(
        r"^\d\. .*?(?=^\d\. |\n\n)", sections()["The code"], re.MULTILINE | re.DOTALL
    )
    assert len(steps) >= 6
    paths: list[str] = []
    for step in steps:
        words = inline_code(step.replace("\n", " "))
        paths += [word for word in words if "/" in word]
        text = "".join((ROOT / path).read_text() for path in paths)
        functions = [word for word in words if "/" not in word]
        assert not [
            name
            for name in functions
            if not re.search(rf"\bdef .*\b{name}\(|inline .*\b{name}\(", text)
        ]


def test_every_configuration_key_exists():
    section_names = "|".join(Config.__dataclass_fields__)
    keys = {c for c in inline_code() if re.fullmatch(rf"(?:{section_names})\.[a-z_]+", c)}
    assert len(keys) > 8
    assert keys <= set(flag_names())


def command_at(words: list[str]) -> tuple[str, click.Command, list[str]]:
    """The command that words name, with its name and the words behind it."""
    name, command, rest = words[0], program.commands[words[0]], words[1:]
    while isinstance(command, click.Group) and rest:
        if isinstance(command, NameOrCommands) and rest[0] not in command.commands:
            break
        name, command, rest = f"{name} {rest[0]}", command.commands[rest[0]], rest[1:]
    return name, command, rest


def test_every_command_and_option_exists():
    lines = [
        words
        for line in command_lines()
        for words in re.findall(r"(?<![\w/.-])shadowmesh(?: --json)? ([a-z][\w.:/ -]*)", line)
    ]
    table = [
        re.sub(r"HOST\[:PORT\]|[\[\]]", "", cell)
        for row in rows("Commands")
        for cell in inline_code(row[0])
    ]
    for line in [*lines, *table]:
        _, command, rest = command_at(line.replace(" N", " 1").split())
        command.make_parser(click.Context(command)).parse_args(rest)
    assert {line.split()[0] for line in table} == set(program.commands)


def test_every_option_of_the_daemon_exists():
    lines = [line for line in command_lines() if "shadowmesh-daemon --" in line]
    assert lines
    for line in lines:
        parse_command_line(shlex.split(line.partition("shadowmesh-daemon ")[2]))
    parse_command_line(["--config", "FILE"])


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        target
        for line in command_lines()
        for target in re.findall(r"^make (?:-C \S+ )?([a-z]+)", line)
    }
    assert named >= {"demo", "test", "install", "deb"}
    assert named <= targets


def test_every_reason_for_a_drop_is_explained():
    paragraph = next(p for p in TEXT.split("\n\n") if p.startswith("Frames under `drops`"))
    assert set(inline_code(paragraph)) - {"drops"} == set(_fastpath.DROP_NAMES)


def test_the_exit_codes_are_those_of_the_help():
    text = program.get_help(click.Context(program))
    listed = re.search(r"Exit codes: (.*?)\.\n", text, re.DOTALL)
    told = re.search(r"Exit codes of both\s+programs: (.*?)\.\n", TEXT, re.DOTALL)
    assert listed
    assert told
    assert re.findall(r"\d", listed[1]) == re.findall(r"\d", told[1])


# --- Everything as printed --------------------------------------------------------------------


def shape(text: str) -> set[str]:
    """The lines of an output without what differs from run to run."""
    text = re.sub(r"(?m)^ *(?:\* )?(?:udp|wss) .*$", "", text)  # one for each path that was tried
    text = re.sub(r"(?m)^( *(?:path +\w+,?|nat|drops) ).*$", r"\1", text)
    text = PUBLIC_KEY.sub("KEY", text)
    text = re.sub(
        r"\bsmr1(?:-[0-9a-z]{4})+|\b[0-9a-f]{4}(?:-[0-9a-f]{4})+|\bfd[0-9a-f:]+", "KEY", text
    )
    text = re.sub(r"\d[\d,.:]*", "N", text)
    text = re.sub(r"\bN (?:B|[KMGT]iB)\b", "N bytes", text)
    text = re.sub(r"(?<= )(?:udp|wss) N\b", "path N", text)  # which one is there first differs
    text = re.sub(r"(frame|rekey|reconnect|thread|open file|check)s?\b", r"\1", text)
    return {" ".join(line.split()) for line in text.splitlines() if line.strip()}


def unpack(directory: Path) -> None:
    """Put the package and all that it needs at run time into a directory, as pip would."""
    shutil.copytree(
        ROOT / "shadowmesh", directory / "shadowmesh", ignore=shutil.ignore_patterns("hooks", "*.c")
    )
    wanted, seen = ["shadowmesh"], set()
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        distribution = importlib.metadata.distribution(name)
        wanted += [
            requirement.name
            for requirement in map(Requirement, distribution.requires or ())
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        ]
        files = distribution.files or () if name != "shadowmesh" else ()
        for file in files:
            if file.parts[0] != ".." and "__pycache__" not in file.parts:
                target = directory / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file.locate(), target)


class Walk:
    """Machines, and the blocks of the pages typed on them.

    Attributes:
        spent_s: in the commands of each block that was typed, its text with it.
    """

    def __init__(self, net: Net, directory: Path, labels: Sequence[str]) -> None:
        self.net = net
        self.directory = directory
        self.machines = {label: Machine(net, label, directory) for label in labels}
        #: what the pages say to replace
        self.words = {"URL-OF-THIS-REPOSITORY": str(ROOT)}
        self.spent_s: list[tuple[str, float]] = []
        #: files in /root that somebody carries from one machine to the others, when they are there
        self.carried: Sequence[str] = ()
        #: at a terminal, by the end of the question
        self.answers = dict(YES)

    def __getitem__(self, label: str) -> Machine:
        return self.machines[label]

    def install(self) -> None:
        """Type the block that clones, installs and starts, with this checkout as what was built.

        What `make install` does after the build is the script that it calls, with the packages of
        this checkout in the place of those that it fetches.
        """
        (block,) = (block for block in blocks(language="sh") if not block.where)
        clone, install, start = self._filled(block.text).splitlines()
        place = clone.split()[-1]
        assert install == f"make -C {place} install"
        packages = self.directory / "packages"
        unpack(packages)
        for machine in self.machines.values():
            machine.shell(clone)
            machine.shell(f"test -e {place}/README.md")
            machine.lend(ROOT, place)
            said = machine.shell(f"{place}/packaging/install.sh install {packages}", timeout_s=180)
            assert f"next: {start}" in said
            machine.shell(start)

    def type_section(self, section: str, where: str = "", *, at_terminal: bool = False) -> str:
        """Type the blocks of a section in their order; return all that they printed.

        Args: where: only those of this machine.
        """
        printed = dict.fromkeys(self.machines, "")
        for block in blocks(section):
            if where not in ("", block.where):
                continue
            if block.language == "text":
                missing = shape(block.text) - shape(printed[block.where])
                assert not missing, f"the page shows what was not printed: {missing}, {printed}"
            elif block.language == "sh" and block.where:
                for place in self.machines if block.where == "both" else [block.where]:
                    printed[place] += self.type_block(block, place, at_terminal=at_terminal)
        return "".join(printed.values())

    def type_block(self, block: Block, place: str, *, at_terminal: bool) -> str:
        """Type a block on a machine, and return what it printed."""
        text, machine, began = self._filled(block.text), self.machines[place], time.monotonic()
        output = (
            machine.terminal(text, answers=self.answers) if at_terminal else machine.shell(text)
        )
        self.spent_s.append((block.text, time.monotonic() - began))
        self._note_words(place, output)
        self._carry(machine)
        return output

    def _carry(self, source: Machine) -> None:
        for name in self.carried:
            if source.succeeds(f"test -e /root/{name}"):
                content = shlex.quote(source.shell(f"base64 -w 0 /root/{name}"))
                for machine in self.machines.values():
                    machine.shell(f"echo {content} | base64 -d >/root/{name}")

    def _filled(self, text: str) -> str:
        for word, value in self.words.items():
            text = re.sub(rf"\b{word}\b", value, text)
        assert not re.search(r"KEY_OF_|SHARED_KEY|ADDRESS_OF_|\bTOKEN\b", text)
        return text

    def _note_words(self, place: str, output: str) -> None:
        """Keep what the pages say to put into later commands."""
        if key := re.fullmatch(PUBLIC_KEY, output.strip()):
            self.words[f"KEY_OF_{place.upper()}"] = key[0]
        if key := re.search(SHARED_KEY, output):
            self.words["SHARED_KEY"] = key[0]
        if token := re.search(TOKEN, output):
            self.words["TOKEN"] = token[0]
        if key := re.search(RECOVERY_KEY, output):
            self.answers["leave it out): "] = key[0]
        if address := re.search(r"^joined \S+ as \S+, ([\d.]+)", output, re.MULTILINE):
            self.words[f"ADDRESS_OF_{place.upper()}"] = address[1]

    def await_tunnel(self) -> None:
        def connected() -> bool:
            return all(m.succeeds("shadowmesh status") for m in self.machines.values())

        wait_until(connected, 15, "all machines are connected", interval_s=0.3)


def traces() -> set[str]:
    """What somebody who types the commands outside of the machines would leave on this one."""
    places = [place for place in ("/etc", "/opt", "/usr/local", "/var/lib") if Path(place).exists()]
    found = subprocess.run(
        ["find", *places, "-xdev", "(", "-name", "*shadowmesh*", "-o", "-name", "site.conf", ")"],
        capture_output=True, text=True, check=False,
    ).stdout.splitlines()  # fmt: skip
    users = [line for line in Path("/etc/passwd").read_text().splitlines() if "shadowmesh" in line]
    cards = {name for name in os.listdir("/sys/class/net") if name in ("tap0", "br0")}
    return {*found, *users, *cards}


@contextlib.contextmanager
def installed(directory: Path, *labels: str) -> Iterator[Walk]:
    """Machines on which the programs are installed and the service runs."""
    missing = [name for name in ("curl", "git", "ping") if shutil.which(name) is None]
    if not (ROOT / ".git").exists():
        missing.append("a clone of the repository")
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}")
    if not (ROOT / ".venv/bin/shadowmesh-daemon").exists():
        pytest.skip("needs what `make build` makes in .venv")
    before = traces()
    with Net() as net:
        try:
            walk = Walk(net, directory, labels)
        except NetlabError as error:
            if "overlay" in str(error):
                pytest.skip(f"needs overlayfs: {error}")
            raise
        walk.install()
        yield walk
        assert traces() <= before, "something of the machines is on this one"


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """The machines after the walk of the README."""
    with installed(tmp_path_factory.mktemp("network"), "server", "laptop", "nas") as walk:
        walk.type_section(NETWORK, at_terminal=True)
        yield walk


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """The machines after the walk of docs/pair.md."""
    with installed(tmp_path_factory.mktemp("pair"), "left", "right") as walk:
        walk.type_section(PAIR)
        walk.await_tunnel()
        yield walk


@pytest.mark.netns
def test_five_commands_make_one_ethernet_of_three_machines(network, record_property):
    typed = [
        (text, spent_s)
        for text, spent_s in network.spent_s
        if re.match(r"shadowmesh (?:network create|invite|join) ", text)
    ]
    assert sum(len(text.splitlines()) for text, _ in typed) == 5
    spent_s = sum(spent_s for _, spent_s in typed)
    record_property(
        "figure",
        f"five commands make one Ethernet of three machines: {spent_s:.1f} s of the machines'",
    )
    assert spent_s < WALK_S
    (look,) = (code for code in inline_code() if code.startswith("openssl x509 "))
    assert "CN = nas, O = home" in network["nas"].shell(look)
    addresses = {label: own_address(machine) for label, machine in network.machines.items()}
    for label, machine in network.machines.items():
        for other in addresses.keys() - {label}:
            assert machine.succeeds(f"ping -c 1 -W 5 {addresses[other]}"), f"{label} to {other}"


@pytest.mark.netns
def test_a_network_comes_back_from_its_backup(tmp_path):
    with installed(tmp_path, "server", "laptop", "spare") as walk:
        for block in [block for block in blocks(NETWORK, "sh") if block.where][:3]:
            walk.type_block(block, block.where, at_terminal=True)
        passphrase = "correct horse battery staple"
        walk.answers |= {"of the backup: ": passphrase, "confirmation: ": passphrase}
        walk.carried = ["home.backup"]
        walk.type_section(BACKUP, "server", at_terminal=True)
        server, spare = walk["server"], walk["spare"]
        server.shell("systemctl stop shadowmesh")
        server.host.ip("address del 198.51.100.1/24 dev eth0")
        spare.host.ip("address add 198.51.100.1/24 dev eth0")
        walk["laptop"].host.ip("neigh flush dev eth0")
        said = walk.type_section(BACKUP, "spare", at_terminal=True)
        assert "this machine is server of home again" in said
        walk["laptop"].shell("shadowmesh wait --for connected --peer server")
        assert "laptop" in spare.shell("shadowmesh network show")


@pytest.mark.netns
def test_a_network_under_a_ca_of_openssl(tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    with installed(tmp_path, "server", "laptop") as walk:
        walk.carried = ("laptop.csr", "laptop.bundle")
        walk.type_section(ANOTHER_CA, at_terminal=True)
        wait_until(lambda: not walk["laptop"].succeeds("shadowmesh cert show"), 5, "the removal")


def own_address(machine: Machine) -> str:
    return machine.shell("ip -4 -o address show tap0").split()[3].partition("/")[0]


@pytest.mark.netns
def test_the_machines_have_a_network_and_directories_of_their_own(walk):
    seen = {
        name: {os.readlink(f"/proc/self/ns/{name}")}
        | {m.shell(f"readlink /proc/self/ns/{name}").strip() for m in walk.machines.values()}
        for name in ("mnt", "net")
    }
    assert {name: len(found) for name, found in seen.items()} == {"mnt": 3, "net": 3}
    mounts = walk["left"].shell("cat /proc/mounts").splitlines()
    own = {line.split()[1] for line in mounts if line.split()[2] in ("overlay", "tmpfs")}
    assert own >= {"/etc", "/opt", "/opt/shadowmesh", "/root", "/run", "/usr/local", "/var"}


@pytest.mark.netns
def test_the_demo_prints_what_the_readme_shows():
    done = subprocess.run(
        [sys.executable, "-m", "shadowmesh.netlab.demo"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (shown,) = (block for block in blocks() if block.where == "demo")
    assert shape(shown.text) - shape(done.stdout) == set()


@pytest.mark.netns
def test_the_walk_through_leads_to_a_tunnel_that_comes_back(walk):
    # The last step was a restart of the daemon, with which the tunnel came by itself.
    assert walk.words.keys() >= {"KEY_OF_LEFT", "KEY_OF_RIGHT", "SHARED_KEY"}
    walk["right"].shell("shadowmesh disconnect")
    assert not walk["right"].succeeds("shadowmesh status")
    walk["right"].shell("shadowmesh connect")
    walk.await_tunnel()


#: programs named in the text, and why their commands are not typed
NOT_TYPED = {
    "apt-get": "the machines share the packages of the one that runs the tests",
    "firewall-cmd": "a firewall that need not be installed",
    "journalctl": "there is no journal where there is no systemd",
    "make": "takes minutes; .ci/run has it in a clean clone",
    "openssl": "looks at what a member has, on which its test types it",
    "modprobe": "the kernel is that of the machine that runs the tests",
    "ufw": "a firewall that need not be installed",
    "usermod": "changes the users of the machine that runs the tests",
    "wg": "another program, to which a command of ours is likened",
}
#: words with which messages and settings begin
NO_PROGRAMS = {"address", "set", "the"}
#: commands of ours that are not typed one by one: the first measures for half a minute and has a test
#: of its own, the second would end what the others ask about and belongs to the walk-through, and the
#: machines of the walk are a pair and no network
ELSEWHERE = ("bench", "cert", "disconnect", "network", "invite", "join", "leave", "peer", "relays")
TYPED = ("ip", "shadowmesh", "ss", "systemctl")
#: these go on until Ctrl-C
ENDLESS = {
    "shadowmesh capture",
    "shadowmesh capture --peer NAME",
    "shadowmesh capture -w FILE",
    "shadowmesh logs -f",
    "shadowmesh ping",
    "shadowmesh ping NAME",
    "shadowmesh status --watch",
}
#: what a command answers on a machine that is connected and configured, and whose STUN server is
#: out of reach, if not 0
REFUSED = {
    "shadowmesh connect": 1,
    "shadowmesh connect HOST:PORT": 1,
    "shadowmesh config init": 1,
    "shadowmesh netcheck": 5,
}
STOPPED_BY_TIMEOUT = 124
#: what is typed for a word in capitals
EXAMPLES = {"N": "1", "HOST:PORT": "198.51.100.1:9001", "ADDRESS": "10.0.0.1", "NAME": "peer"}
#: of these the daemon does one at a time
ALONE = "shadowmesh capture"


def commands_in_the_text() -> list[str]:
    """Whole command lines between backticks, and those of the table of commands with each option."""
    lines = [
        code
        for code in inline_code()
        if code.split()[0] in TYPED and " " in code and "…" not in code
    ]
    for row in rows("Commands"):
        for cell in inline_code(row[0]):
            # of "NAME or ADDRESS" the last is typed
            cell = re.sub(r"\w+ or ", "", cell.replace("HOST[:PORT]", "HOST:PORT"))  # noqa: PLW2901
            short = re.sub(r" \[.*?\]", "", cell)
            lines.append(f"shadowmesh {short}")
            lines += [
                f"shadowmesh {short} {optional}" for optional in re.findall(r" \[(.*?)\]", cell)
            ]
    return [
        line
        for line in dict.fromkeys(lines)
        if "COMMAND" not in line and line.split()[1] not in ELSEWHERE
    ]


def test_every_section_with_commands_is_typed():
    assert {block.section for block in blocks(language="sh")} == SECTIONS
    assert sum(not block.where for block in blocks(language="sh")) == 1  # Walk.install


def test_every_program_named_in_the_text_is_typed_or_has_a_reason_not_to_be():
    # Nobody asks the machine which words are programs: what is one differs from machine to machine.
    first_words = {
        code.split()[0] for code in inline_code() if " " in code and "\u2026" not in code
    }
    lower_case = {word for word in first_words if re.fullmatch(r"[a-z][a-z0-9-]*", word)}
    assert lower_case - set(program.commands) - NO_PROGRAMS == {*TYPED, *NOT_TYPED}


@pytest.fixture(scope="module")
def exit_codes(walk):
    """What each command answered on *right*; most of the time goes into starting Python."""

    def type_in(line: str) -> int:
        typed = line
        for word, value in EXAMPLES.items():
            typed = re.sub(rf"\b{word}\b", value, typed)
        typed = re.sub(r"\bFILE\b", f"/run/{line.split()[1]}.written", typed)
        if line == "shadowmesh pubkey":
            typed += " </var/lib/shadowmesh/identity.key"
        with taking_turns if line.startswith(ALONE) else contextlib.nullcontext():
            # some write into the directory in which they are typed
            return walk["right"].exit_code(
                f"cd /run; timeout {2 if line in ENDLESS else 25} {typed}"
            )

    taking_turns = threading.Lock()
    lines = commands_in_the_text()
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(lines, pool.map(type_in, lines), strict=True))


@pytest.mark.netns
@pytest.mark.parametrize("line", commands_in_the_text())
def test_a_command_in_the_text_does_what_it_is_there_for(exit_codes, line):
    expected = STOPPED_BY_TIMEOUT if line in ENDLESS else REFUSED.get(line, 0)
    assert exit_codes[line] == expected


@pytest.mark.netns
def test_the_frames_of_the_tunnel_can_be_seen(network):
    target = own_address(network["nas"])
    network["server"].shell(f"ping -c 40 -i 0.1 {target} >/run/ping.log 2>&1 &")
    assert "ICMP echo reply" in network.type_section(TROUBLE)


@pytest.mark.netns
def test_the_files_have_the_modes_that_the_readme_says(network):
    checked = 0
    for row in rows("Security"):
        if row[0].startswith("`/"):
            assert network["server"].shell(f"stat -c 0%a {row[0].strip('`')}").strip() == row[1]
            checked += 1
    assert checked == 5


@pytest.mark.netns
def test_a_daemon_that_root_tries_does_not_keep_the_service_from_starting(walk):
    walk["left"].shell("systemctl stop shadowmesh")
    walk["left"].exit_code(
        "timeout 10 shadowmesh-daemon & shadowmesh wait --for running; kill %1; wait"
    )
    made = walk["left"].shell(
        "stat -c '%n %U:%G %a' /etc/shadowmesh/*.pem /var/lib/shadowmesh/*.key"
    )
    assert made.splitlines() == [
        "/etc/shadowmesh/cert.pem root:shadowmesh 640",
        "/etc/shadowmesh/key.pem root:shadowmesh 640",
        "/var/lib/shadowmesh/identity.key shadowmesh:shadowmesh 600",
    ]
    walk["left"].shell("systemctl start shadowmesh")
    walk.await_tunnel()


@pytest.mark.netns
def test_the_api_answers_and_tells_the_metrics(network):
    printed = network.type_section(API)
    assert '"state": "connected"' in printed
    metrics = [c for c in inline_code(sections()[API]) if re.fullmatch(r"shadowmesh_\w+", c)]
    assert len(metrics) > 6
    assert not [name for name in metrics if f"\n{name}" not in printed]


@pytest.mark.netns
def test_flags_and_environment_go_before_the_file(network):
    printed = network.type_section(CONFIGURATION)
    assert "mtu: 1400  # environment SHADOWMESH_NETWORK_MTU" in printed
    assert 'log_level: "debug"  # flag --daemon.log_level' in printed


@pytest.fixture(scope="module")
def on_port_443(walk):
    walk.type_section(PORT_443)
    walk.await_tunnel()
    return walk


@pytest.mark.netns
def test_the_tunnel_runs_on_port_443(on_port_443):
    assert "198.51.100.1:443" in on_port_443["right"].shell("shadowmesh status")


NGINX_SITE = """
server {{
    listen 443 ssl;
    ssl_certificate {pem};
    ssl_certificate_key {pem};
{snippet}
}}
"""
HAPROXY_FRONTEND = """
defaults
    mode http
    timeout connect 5s
    timeout client 50s
    timeout server 50s
frontend site
    bind :443 ssl crt {pem}
{snippet}
"""
WEB_SERVERS = {
    "nginx": (
        NGINX_SITE, "cp {file} /etc/nginx/conf.d/site.conf; mkdir -p /var/log/nginx; nginx",
        "nginx -s stop",
    ),
    "haproxy": (HAPROXY_FRONTEND, "haproxy -D -f {file}", "true"),
}  # fmt: skip


@pytest.mark.netns
@pytest.mark.parametrize("name", WEB_SERVERS)
def test_the_tunnel_runs_behind_a_web_server(on_port_443, name):
    if shutil.which(name) is None:
        pytest.skip(f"needs {name}")
    walk = on_port_443
    site, start, stop = WEB_SERVERS[name]
    (snippet,) = blocks(language=name)
    pem = self_signed(walk.directory / f"{name}.pem", name)
    file = walk.directory / f"{name}.conf"
    file.write_text(site.format(pem=pem, snippet=snippet.text))
    # The daemon goes back to its own port, the web server takes 443.
    walk["left"].shell("sed -i 's|:443|:9001|' /etc/shadowmesh/daemon.yaml")
    walk["left"].shell("systemctl restart shadowmesh")
    walk["left"].shell(start.format(file=file))
    walk["right"].shell("systemctl restart shadowmesh")
    walk.await_tunnel()
    assert "TLS proxied-or-intercepted" in walk["right"].shell("shadowmesh status")
    walk["left"].shell(stop)


@pytest.mark.netns
def test_two_lans_are_joined(walk):
    lans = []
    for number, machine in enumerate(walk.machines.values(), 1):
        lan = walk.net.namespace(f"lan{number}")
        machine.host.ip(f"link add eth1 type veth peer name eth0 netns {lan.namespace}")
        lan.ip(f"address add 192.168.7.{number}/24 dev eth0", "link set eth0 up")
        lans.append(lan)
    walk.type_section(LANS)
    wait_until(
        lambda: lans[0].ping("192.168.7.2", count=1).complete, LAN_WAIT_S, "a ping from LAN to LAN"
    )
    assert lans[1].ping("192.168.7.1", size=1472, dont_fragment=True).complete
