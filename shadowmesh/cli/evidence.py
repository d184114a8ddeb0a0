"""What somebody who looks for a fault wants to know about a machine, as texts without secrets.

Owns: the parts of a bug report, each independent of the others, and the archive that they go into.
Does not know: the command line, how the daemon is asked (it is given the client).

A part that cannot be had says why instead: a report from a broken machine is worth the most.
"""

from __future__ import annotations

import base64
import importlib.metadata
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import filemode
from typing import Any, Final

from shadowmesh import __version__
from shadowmesh.base.constants import IDENTITY_FILE, SEED_BYTES, TOKEN_FILE
from shadowmesh.base.errors import ConfigError, ShadowMeshError
from shadowmesh.cli.redaction import Redactor

#: of the log
LOG_LINES: Final = 2000
#: of one part; the end is what counts
MAX_PART_BYTES: Final = 4 << 20
#: a program that hangs costs the report this, and only its own part
COMMAND_TIMEOUT_S: Final = 10.0
EVENTS: Final = 1000

_LIBRARIES: Final = (
    "click", "cryptography", "flask", "gevent", "gevent-websocket", "greenlet", "prometheus-client",
    "psutil", "pysodium", "pyyaml", "werkzeug",
)  # fmt: skip
_SYSCTLS: Final = (
    "net/core/rmem_max", "net/core/rmem_default", "net/core/wmem_max", "net/core/wmem_default",
    "net/core/netdev_max_backlog", "net/core/optmem_max", "net/core/default_qdisc",
    "net/ipv4/ip_forward", "net/ipv4/ip_local_port_range", "net/ipv4/ip_no_pmtu_disc",
    "net/ipv4/tcp_congestion_control", "net/ipv6/conf/all/disable_ipv6",
    "net/ipv6/conf/all/forwarding", "net/bridge/bridge-nf-call-iptables",
    "net/netfilter/nf_conntrack_udp_timeout", "kernel/unprivileged_userns_clone",
)  # fmt: skip

#: what is in the archive that somebody may not want to give away, for the line that is printed
REMAINS: Final = "IP and MAC addresses, host names, public keys and file names"

_README: Final = f"""\
A report about ShadowMesh on one machine, made by `shadowmesh bugreport`.

Taken out: the pre-shared key, the API token, the private keys, and whatever looks like one of
them. Left in, because faults hide there: {REMAINS}.
A file that is called NAME.failed.txt says why NAME could not be had.
"""


@dataclass(frozen=True, slots=True)
class Part:
    """One file of the report.

    Attributes:
        name: of the file.
        text: redacted.
        problem: why it could not be had, redacted; None when it could.
    """

    name: str
    text: str
    problem: str | None = None

    @property
    def file(self) -> str:
        """The name in the archive: nobody shall take a reason for the thing itself."""
        return self.name if self.problem is None else f"{self.name}.failed.txt"


#: how each part is made; raises ShadowMeshError or OSError when it cannot be had
Source = Mapping[str, Callable[[], str]]


def collect(sources: Source, redact: Redactor) -> Iterator[Part]:
    """Make every part, one after the other, without secrets."""
    for name, make in sources.items():
        try:
            text = make()
        except ConfigError as error:
            yield _failed(name, error.report(), redact)
        except (ShadowMeshError, OSError, ValueError, subprocess.SubprocessError) as error:
            yield _failed(name, str(error), redact)
        else:
            # Redacted before it is cut, or half of a secret could stand at the edge.
            yield Part(name, _end_of(redact(text)))


def _failed(name: str, why: str, redact: Redactor) -> Part:
    why = redact(why)
    return Part(name, f"{why}\n", why)


def _end_of(text: str) -> str:
    if len(text) <= MAX_PART_BYTES:
        return text
    return (
        f"(the first {len(text) - MAX_PART_BYTES} characters are left out)\n"
        + (text[-MAX_PART_BYTES:])
    )


def archive(parts: Iterable[Part], directory: str) -> bytes:
    """Return a tar.gz with one file for each part below `directory`, and a README."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, text in (
            ("README.txt", _README),
            *((part.file, part.text) for part in parts),
        ):
            # Unpaired surrogates come from file names that are no UTF-8.
            data = text.encode("utf-8", "backslashreplace")
            entry = tarfile.TarInfo(f"{directory}/{name}")
            entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
            tar.addfile(entry, io.BytesIO(data))
    return packed.getvalue()


# --- Secrets ------------------------------------------------------------------------------------


def secrets_of(
    psk: bytes | None, state_dir: Path | None, environ: Mapping[str, str]
) -> dict[str, bytes | str]:
    """Return every secret that this user can read: what others could not put into a part.

    Args:
        psk: `encryption.key`, None without one.
        state_dir: where the identity and the token are; None when it is not known.
    """
    found: dict[str, bytes | str] = {}
    if psk is not None:
        found["encryption.key"] = psk
    typed = environ.get("SHADOWMESH_ENCRYPTION_KEY")
    if typed:
        found["SHADOWMESH_ENCRYPTION_KEY"] = typed
    if state_dir is not None:
        token, seed = _read(state_dir / TOKEN_FILE), _read(state_dir / IDENTITY_FILE)
        if token:
            found["API token"] = token.decode("latin-1")
        if seed:
            found["identity"] = seed if len(seed) == SEED_BYTES else _seed_in(seed)
    return found


def _seed_in(content: bytes) -> bytes | str:
    """Return the seed that an identity file of text holds, or the text when it is none."""
    text = content.decode("latin-1").strip()
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return text


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()[:4096]
    except OSError:
        return b""


# --- Parts that need no daemon ------------------------------------------------------------------


def versions(daemon_program: Sequence[str]) -> str:
    """Return the versions of everything that takes part.

    Args:
        daemon_program: the command of shadowmesh-daemon, which knows its libsodium.
    """
    lines = [
        f"shadowmesh   {__version__}",
        f"daemon file  {_first_line([*daemon_program, '--version'])}",
        f"python       {sys.version.split()[0]} ({platform.python_implementation()}), {sys.executable}",
        f"kernel       {' '.join(platform.uname())}",
        f"system       {_os_name()}",
    ]
    for name in _LIBRARIES:
        try:
            lines.append(f"{name:20} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            lines.append(f"{name:20} not installed")
    return "\n".join(lines) + "\n"


def _first_line(command: Sequence[str]) -> str:
    try:
        return run(command).partition("\n")[0]
    except (OSError, ShadowMeshError, subprocess.SubprocessError) as error:
        return f"not known: {error}"


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "not known")
    except OSError:
        return "not known"


def kernel() -> str:
    """Return what the kernel offers and how it is set."""
    tun = Path("/dev/net/tun")
    lines = [f"now     {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}"]
    lines += [f"{name:7} {_file_text(Path('/proc') / name)}" for name in ("uptime", "loadavg")]
    lines.append(f"cores   {os.cpu_count()}")
    memory = _file_text(Path("/proc/meminfo")).splitlines()
    lines += [line for line in memory if line.startswith(("MemTotal", "MemAvailable", "Swap"))]
    lines.append(f"user    {os.geteuid()}, {_capabilities()}")
    lines.append(f"tun     {_describe(tun)}")
    loaded = "tun" in _file_text(Path("/proc/misc")).split()
    lines.append(f"        the driver is {'there' if loaded else 'not loaded'}")
    lines += ["", *(f"{name} = {_file_text(Path('/proc/sys') / name)}" for name in _SYSCTLS)]
    return "\n".join(lines) + "\n"


def _capabilities() -> str:
    status = _file_text(Path("/proc/self/status")).splitlines()
    return next((line.replace("\t", " ") for line in status if line.startswith("CapEff")), "")


def _file_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError as error:
        return f"({error.strerror})"


def files(paths: Iterable[Path]) -> str:
    """Return mode, owner and size of files, and the room on their file systems; no content."""
    lines: list[str] = []
    for path in paths:
        lines.append(_describe(path))
        try:
            lines += [f"  {_describe(inner)}" for inner in sorted(path.iterdir())[:100]]
            room = shutil.disk_usage(path)
            lines.append(f"  {room.free} of {room.total} bytes are free")
        except NotADirectoryError:
            continue
        except OSError as error:
            lines.append(f"  {error.strerror}")
    return "\n".join(lines) + "\n"


def _describe(path: Path) -> str:
    try:
        found = path.lstat()
    except OSError as error:
        return f"{path}: {error.strerror}"
    return f"{filemode(found.st_mode)} {found.st_uid}:{found.st_gid} {found.st_size:>8} {path}"


def environment(environ: Mapping[str, str]) -> str:
    """Return which of our variables are set; their values are in the configuration."""
    names = sorted(name for name in environ if name.startswith("SHADOWMESH_"))
    return "".join(f"{name} is set\n" for name in names) or "no SHADOWMESH_ variable is set\n"


def commands(*lines: Sequence[str]) -> str:
    """Return what each command prints, one after the other.

    Raises:
        ShadowMeshError: none of them could be run.
    """
    texts, worked = [], False
    for line in lines:
        try:
            text = run(line)
            worked = True
        except (OSError, ShadowMeshError, subprocess.SubprocessError) as error:
            text = f"({error})\n"
        texts.append(f"$ {' '.join(line)}\n{text}")
    if not worked:
        raise ShadowMeshError("; ".join(text.replace("\n", " ").strip() for text in texts))
    return "\n".join(texts)


def run(command: Sequence[str]) -> str:
    """Return what a command prints.

    Raises:
        OSError: it cannot be started.
        ShadowMeshError: it failed.
        subprocess.SubprocessError: it took too long.
    """
    if shutil.which(command[0]) is None:
        raise ShadowMeshError(f"{command[0]} is not installed")
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=COMMAND_TIMEOUT_S,
        check=False, env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip
    text = done.stdout.decode("utf-8", "replace")
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip()
        raise ShadowMeshError(f"exit {done.returncode}: {said or text.strip()}")
    return text


def as_json(value: Mapping[str, Any]) -> str:
    """Return an answer of the daemon as a file."""
    return json.dumps(value, indent=2) + "\n"
