"""`make fuzz`: libFuzzer on every parser, one after the other, in processes of their own.

    make fuzz                                      60 s for each target
    make fuzz ARGS="--seconds 600 stun control"    longer, two of them
    make fuzz ARGS="stun build/fuzz/stun/crash-…"  one input again

Python code leads the fuzzer by its coverage; the data plane (datagram, offload) is not instrumented
and gets mutations of the seeds. What was found interesting stays in build/fuzz/TARGET and is where the next run begins. Exit code 1:
at least one target failed; the input that did it lies there as crash-…, timeout-… or oom-….
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "build" / "fuzz"
MEMORY_MIB = 2048
ONE_INPUT_S = 10
MAX_INPUT_BYTES = 8192


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["--one"]:
        _fuzz(words[1], words[2:])
    from .targets import TARGETS

    parser = argparse.ArgumentParser(prog="fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("what", nargs="*", metavar="TARGET|FILE", help=", ".join(TARGETS))
    options = parser.parse_args(words)
    wanted = [word for word in options.what if word in TARGETS] or list(TARGETS)
    files = [word for word in options.what if word not in TARGETS]
    missing = [name for name in files if not Path(name).is_file()]
    if missing:
        parser.error(f"neither a target nor a file: {missing[0]}")
    failed = [name for name in wanted if not _run(name, options.seconds, files)]
    print(f"fuzz: {len(wanted) - len(failed)} of {len(wanted)} targets found nothing", flush=True)
    for name in failed:
        print(f"fuzz: {name} failed, see {CORPUS / name}")
    return 1 if failed else 0


def _run(name: str, seconds: int, files: Sequence[str]) -> bool:
    """Fuzz one target in a process of its own: a crash of the C code ends only that."""
    directory = CORPUS / name
    directory.mkdir(parents=True, exist_ok=True)
    words = list(files) or [f"-max_total_time={seconds}", str(directory)]
    limits = [
        f"-rss_limit_mb={MEMORY_MIB}",
        f"-timeout={ONE_INPUT_S}",
        f"-max_len={MAX_INPUT_BYTES}",
        f"-artifact_prefix={directory}/",
        "-print_final_stats=1",
        "-verbosity=0",
    ]
    print(f"fuzz: {name}", flush=True)
    command = [sys.executable, "-m", "fuzz", "--one", name, *limits, *words]
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def _fuzz(name: str, words: Sequence[str]) -> NoReturn:
    """Become the fuzzer; it ends the process. Nothing of ours may be imported before."""
    import atheris

    # Nothing shows the fuzzer which way the C code goes; the twin beside it, in Python, does.
    with atheris.instrument_imports(
        include=["shadowmesh.wire", "shadowmesh.config", "shadowmesh.network", "tests.twins"]
    ):
        from .targets import TARGETS
    target = TARGETS[name]
    for seed in target.seeds():
        path = CORPUS / name / f"seed-{hashlib.sha256(seed).hexdigest()[:16]}"
        if not path.exists():
            path.write_bytes(seed)
    atheris.Setup([sys.argv[0], *words], target.run)
    atheris.Fuzz()
    raise AssertionError("the fuzzer ends the process")


if __name__ == "__main__":
    sys.exit(main())
