"""`shadowmesh cert`: certificates without a relay, and how long ours lasts."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any, Final

import click

from shadowmesh.base.clock import utc_now
from shadowmesh.base.errors import BadRequest, NotInNetwork
from shadowmesh.base.units import listed
from shadowmesh.cli import asking, files
from shadowmesh.cli.group import Commands
from shadowmesh.cli.output import parse_time, print_json, text, texts, warn
from shadowmesh.cli.parameters import Duration, MemberName
from shadowmesh.cli.render_certificate import left, render_certificate, render_installation
from shadowmesh.cli.settings import Settings
from shadowmesh.cli.settling import Progress, await_network

_DAY_S: Final = 24 * 3600.0
#: exit code of `cert show` by the days that are left, the fewest first
EXIT_CODES: Final = ((1, 10), (7, 9), (30, 8))
#: of a certificate: an hour, 20 years
_SHORTEST_S: Final = 3600.0
_LONGEST_S: Final = 20 * 365 * _DAY_S
_MAX_BYTES: Final = 12 << 10
#: of a bundle with the fullest lists, and of such a list
_MAX_BUNDLE_BYTES: Final = 1 << 20

_out = click.option(
    "-o", "--out", type=files.FILE, metavar="FILE", help="Write it there.  [default: stdout]"
)
_overwrite = click.option("--yes", is_flag=True, help="Overwrite FILE.")


@click.group(cls=Commands)
def cert() -> None:
    """Certificates without a relay: for an offline authority, another CA, or a look at ours."""


@cert.command()
@click.option(
    "--name", type=MemberName(), metavar="NAME",
    help="To stand in the request; the issuer decides.  [default: the host's name]",
)  # fmt: skip
@_out
@_overwrite
@click.pass_obj
def request(settings: Settings, name: str | None, out: Path | None, yes: bool) -> None:
    """Write a request for a certificate for this machine (PKCS#10, as `openssl req` shows it).

    The key stays here. Repeated it is for the same key, until an invitation is taken.
    """
    if out is not None:
        files.check_free(out, yes=yes)
    answer = settings.client().post("/certificate/request", {"name": name}, "request")
    _give(settings, answer, str(answer["request"]), out, yes=yes)


@cert.command()
@click.argument("request", type=files.FILE, metavar="REQUEST")
@click.option("--name", type=MemberName(), required=True, metavar="NAME", help="Of the member.")
@click.option(
    "--role", "roles", multiple=True, metavar="ROLE", help="Role that it gets, such as relay."
)
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="Tag that it gets.")
@click.option(
    "--ip", "addresses", multiple=True, metavar="ADDRESS",
    help="In the tunnel; once for IPv4 and once for IPv6.  [default: chosen]",
)  # fmt: skip
@click.option(
    "--expires", type=Duration(_LONGEST_S, _SHORTEST_S), metavar="TIME",
    help="How long it is valid, such as 30d.  [default: as long as the authority]",
)  # fmt: skip
@_out
@_overwrite
@click.pass_obj
def sign(
    settings: Settings,
    request: Path,
    name: str,
    roles: tuple[str, ...],
    tags: tuple[str, ...],
    addresses: tuple[str, ...],
    expires: float | None,
    out: Path | None,
    yes: bool,
) -> None:
    """Sign a request, and write the bundle that `cert install` takes on the machine it came from.

    Of REQUEST nothing but the key is believed. The bundle can be read by that machine alone, as the
    secret of the network is in it. A member keeps the roles, tags and addresses that are not given.
    """
    if out is not None:
        files.check_free(out, yes=yes)
    body = {
        "request": _encoded(request),
        "name": name,
        "roles": list(roles) or None,
        "tags": list(tags) or None,
        "addresses": list(addresses),
        "expires_s": None if expires is None else round(expires),
    }
    answer = settings.client().post("/certificates", body, "bundle")
    _give(settings, answer, str(answer["bundle"]), out, yes=yes)
    _say_what_was_signed(settings, answer)


@cert.command()
@click.argument("certificate", type=files.FILE, metavar="CERTIFICATE")
@_out
@_overwrite
@click.pass_obj
def bundle(settings: Settings, certificate: Path, out: Path | None, yes: bool) -> None:
    """Write the bundle for a machine whose certificate another CA has signed.

    Any member of the network can do that. The bundle can be read by that machine alone.
    """
    if out is not None:
        files.check_free(out, yes=yes)
    body = {"certificate": _encoded(certificate)}
    answer = settings.client().post("/certificates/bundle", body, "bundle")
    _give(settings, answer, str(answer["bundle"]), out, yes=yes)
    _say_what_was_signed(settings, answer)


@cert.command()
@click.argument("bundle", type=click.Path(path_type=Path, allow_dash=True), metavar="BUNDLE")
@click.option(
    "--authority", metavar="FINGERPRINT",
    help="That the authority of the network must have, as `network show` says it there.",
)  # fmt: skip
@click.option("--yes", is_flag=True, help="Take it without asking, whatever there is to doubt.")
@click.pass_obj
def install(settings: Settings, bundle: Path, authority: str | None, yes: bool) -> None:
    """Take the certificate in BUNDLE: this machine is a member then, or has another certificate.

    The fingerprint of the authority is shown and asked about; a script gives it by --authority, with
    --yes. Exit code 6 when the daemon does not come back in time.
    """
    asking.need_answer(yes=yes, what="taking a certificate")
    data = files.read_file(bundle, _MAX_BUNDLE_BYTES)
    client = settings.client()

    def ask(fingerprint: str | None, *, accept: bool) -> dict[str, Any]:
        body = {"file": files.send_file(client, data), "authority": fingerprint, "accept": accept}
        return client.post("/certificate", body, "doubts")

    offer = ask(authority, accept=False)
    member = offer.get("member") is True
    if not member and authority is None and yes:
        raise click.UsageError(
            "the fingerprint of the authority has to be compared: give it with --authority"
        )
    if not settings.json or not yes:
        click.echo(render_installation(offer), err=settings.json)
    for doubt in texts(offer["doubts"]):
        warn(doubt)
    if not yes:
        asking.ask(
            "take it?" if member or authority else "is this the authority of the network?",
            otherwise="nothing was changed",
        )
    taken = ask(str(offer.get("authority")), accept=True)
    if not member:
        with Progress(shown=not settings.json).step("device"):
            await_network(client, taken.get("network"))
    if settings.json:
        print_json(taken)
        return
    click.echo(f"this machine is {text(taken.get('name'))} of {text(taken.get('network'))}")


@cert.command()
@click.pass_obj
def show(settings: Settings) -> int:
    """Show the certificate of this machine.

    Exit codes: 0 it is good for more than 30 days, 8 for less, 9 for less than 7 days, 10 for less
    than one day or it counts no more, 1 this machine is in no network.
    """
    answer = settings.client().get("/certificate", "certificate")
    found = answer["certificate"]
    if found is None:
        raise NotInNetwork("this machine is in no network, and has no certificate of one")
    now = utc_now().timestamp()
    if settings.json:
        print_json(answer)
    else:
        click.echo(render_certificate(found, now))
    end = parse_time(found.get("expires_at"))
    if found.get("problem") or end is None:
        return EXIT_CODES[0][1]
    return next((code for days, code in EXIT_CODES if end - now < days * _DAY_S), 0)


@cert.command()
@click.pass_obj
def renew(settings: Settings) -> None:
    """Ask a relay for the certificate of today, with the lists and the secret that go with it.

    By itself that is done at two thirds of its time, and after a change by the issuer.
    """
    answer = settings.client().post("/certificate/renew", {}, "renewed")
    if settings.json:
        print_json(answer)
        return
    found = answer.get("certificate") or {}
    said = "renewed" if answer["renewed"] else "it is the newest there is"
    click.echo(f"{said}: {left(found, utc_now().timestamp())}")


@cert.command()
@click.argument("file", type=files.FILE, metavar="FILE")
@click.pass_obj
def crl(settings: Settings, file: Path) -> None:
    """Let the revocation list in FILE count, which a CA has signed that is not ours.

    It goes on to all members by itself.
    """
    data = files.read_file(file, _MAX_BUNDLE_BYTES)
    client = settings.client()
    answer = client.post("/network/lists", {"file": files.send_file(client, data)}, "removed")
    if settings.json:
        print_json(answer)
        return
    out = texts(answer["removed"])
    verb = "is" if len(out) == 1 else "are"
    click.echo(f"{listed(out)} {verb} out of the network" if out else "nobody was put out by it")


def _give(
    settings: Settings, answer: dict[str, Any], content: str, out: Path | None, *, yes: bool
) -> None:
    """Write what a command is for into the file, or print it."""
    if out is not None:
        files.write_secret(out, content.encode("ascii"), yes=yes)
    if settings.json:
        print_json(answer)
    elif out is None:
        click.echo(content, nl=False)


def _say_what_was_signed(settings: Settings, answer: dict[str, Any]) -> None:
    if not settings.json:
        found = answer.get("certificate") or {}
        addresses = listed(texts(found.get("addresses")))
        click.echo(f"signed for {text(found.get('name'))}, {addresses}", err=True)


def _encoded(path: Path) -> str:
    data = files.read_file(path, _MAX_BYTES)
    if not data:
        raise BadRequest(f"{path} is empty")
    return base64.b64encode(data).decode("ascii")
