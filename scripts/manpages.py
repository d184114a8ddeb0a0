"""Write the manual pages: python scripts/manpages.py DIRECTORY.

    shadowmesh.1, shadowmesh-COMMAND.1   from the commands themselves, as --help has them
    shadowmesh-daemon.8                  from its --help
    shadowmesh.yaml.5                    from conf/daemon.yaml

So that none of them can tell something else than the programs do.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from shadowmesh import __version__
from shadowmesh.cli.program import program
from shadowmesh.service.daemon import USAGE

ROOT = Path(__file__).resolve().parent.parent

EXIT_STATUS = (
    ("0", "done"),
    ("1", "the operation failed"),
    ("2", "wrong usage"),
    ("3", "the daemon does not run"),
    ("4", "not permitted"),
    ("5", "not connected, or the peer cannot be reached"),
    ("6", "no outcome in time"),
    ("7", "the configuration is invalid"),
)
FILES = (
    ("/etc/shadowmesh/daemon.yaml", "configuration, see shadowmesh.yaml(5)"),
    ("/var/lib/shadowmesh", "identity key and API token; as a service also the certificate"),
    ("~/.shadowmesh", "configuration and state for other users than root"),
)


def main() -> None:
    """Write all pages into the directory that the command line names."""
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/manpages.py DIRECTORY")
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in pages():
        (directory / name).write_text(text, encoding="utf-8")


def pages() -> Iterator[tuple[str, str]]:
    """Give file name and text of each page."""
    for names, command in commands(("shadowmesh",), program):
        yield f"{'-'.join(names)}.1", command_page(names, command)
    yield "shadowmesh-daemon.8", daemon_page()
    yield "shadowmesh.yaml.5", configuration_page()


def commands(
    names: tuple[str, ...], command: click.Command
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Give the command and all below it, each with the words that call it."""
    yield names, command
    if isinstance(command, click.Group):
        for name, inner in sorted(command.commands.items()):
            yield from commands((*names, name), inner)


# --- Pages ------------------------------------------------------------------------------------


def command_page(names: tuple[str, ...], command: click.Command) -> str:
    """Return the page of one command."""
    ctx = click.Context(command, info_name=" ".join(names))
    text = inspect.cleandoc(command.help or "")
    synopsis = " ".join([f"\\fB{escaped(' '.join(names))}\\fR", *map(
        escaped, command.collect_usage_pieces(ctx))])  # fmt: skip
    lines = [
        *header("-".join(names), 1, text.partition("\n")[0].rstrip(".")),
        ".SH SYNOPSIS", synopsis,
        ".SH DESCRIPTION", *paragraphs(text),
    ]  # fmt: skip
    records = [
        record for parameter in command.get_params(ctx)
        if (record := parameter.get_help_record(ctx)) is not None
    ]  # fmt: skip
    lines += section("OPTIONS", records)
    if isinstance(command, click.Group):
        inner = [
            (f"{' '.join(names)} {name}", one.get_short_help_str(200))
            for name, one in sorted(command.commands.items())
        ]
        lines += section("COMMANDS", inner)
    if len(names) == 1:
        lines += section("FILES", FILES)
    lines += section("EXIT STATUS", EXIT_STATUS)
    others = ["shadowmesh(1)", "shadowmesh-daemon(8)", "shadowmesh.yaml(5)"]
    lines += [".SH SEE ALSO", ", ".join(map(escaped, others[1 if len(names) == 1 else 0 :]))]
    return "\n".join(lines) + "\n"


def daemon_page() -> str:
    """Return the page of the daemon."""
    usage, _, rest = USAGE.partition("\n\n")
    options, _, tail = rest.partition("\n\n")
    lines = [
        *header("shadowmesh-daemon", 8, "the encrypted tunnel, as a service in the foreground"),
        ".SH SYNOPSIS", escaped(usage.removeprefix("usage: ")),
        ".SH OPTIONS", *verbatim(options),
        ".SH DESCRIPTION", *paragraphs(tail),
        ".PP", escaped(
            "It needs CAP_NET_ADMIN and /dev/net/tun. SIGHUP makes it read its configuration "
            "again, SIGTERM and SIGINT end it. Under systemd it tells when it is ready, how it is "
            "and, as a watchdog, that it is alive."
        ),
    ]  # fmt: skip
    lines += section("FILES", FILES) + section("EXIT STATUS", EXIT_STATUS)
    lines += [".SH SEE ALSO", escaped("shadowmesh(1), shadowmesh.yaml(5)")]
    return "\n".join(lines) + "\n"


def configuration_page() -> str:
    """Return the page of the configuration."""
    text = (ROOT / "conf" / "daemon.yaml").read_text(encoding="utf-8")
    lines = [
        *header("shadowmesh.yaml", 5, "configuration of shadowmesh-daemon"),
        ".SH DESCRIPTION",
        escaped("The file is /etc/shadowmesh/daemon.yaml, or what --config names. This is all of "
                "it with its defaults, as `shadowmesh config init` writes it:"),
        *verbatim(text),
        ".SH SEE ALSO", escaped("shadowmesh-daemon(8), shadowmesh-config(1)"),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


# --- Parts ------------------------------------------------------------------------------------


def header(name: str, number: int, summary: str) -> list[str]:
    return [
        f'.TH "{escaped(name.upper())}" {number} "" "ShadowMesh {__version__}" "ShadowMesh"',
        ".SH NAME",
        f"{escaped(name)} \\- {escaped(summary)}",
    ]


def section(title: str, entries: list[tuple[str, str]] | tuple[tuple[str, str], ...]) -> list[str]:
    """Return a list of terms and what they mean; nothing without terms."""
    lines = [f".SH {title}"] if entries else []
    for term, meaning in entries:
        lines += [".TP", f"\\fB{escaped(term)}\\fR", escaped(meaning)]
    return lines


def paragraphs(text: str) -> list[str]:
    """Return running text; what follows click's mark \\b keeps its lines."""
    lines: list[str] = []
    for part in text.split("\n\n"):
        if part.startswith("\b\n"):
            lines += verbatim(part[2:])
        else:
            lines += [".PP", escaped(" ".join(part.split()))]
    return lines


def verbatim(text: str) -> list[str]:
    return [".PP", ".nf", *map(escaped, text.rstrip("\n").split("\n")), ".fi"]


def escaped(line: str) -> str:
    """Return one line with nothing in it that roff would take for its own."""
    line = line.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{line}" if line[:1] in (".", "'") else line


if __name__ == "__main__":
    main()
