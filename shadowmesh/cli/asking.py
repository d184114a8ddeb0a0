"""A question before something is done that is not undone by the next command.

Owns: who can be asked, what a no is. Does not know: what is asked about.
"""

from __future__ import annotations

import sys

import click

from shadowmesh.base.errors import ShadowMeshError


class Declined(ShadowMeshError):
    """The user said no."""


def need_answer(*, yes: bool, what: str) -> None:
    """Refuse to go on where nobody has said yes and nobody can be asked.

    Args:
        what: would be done.
    Raises:
        click.UsageError: so it is.
    """
    if not yes and not is_terminal():
        raise click.UsageError(
            f"{what} has to be confirmed, and there is no terminal to ask at; say --yes"
        )


def ask(question: str, *, otherwise: str) -> None:
    """Ask; come back after a yes.

    Raises:
        Declined: it was a no, with `otherwise` as its text.
    """
    # Not on stdout: that is for programs.
    if not click.confirm(question, err=True):
        raise Declined(otherwise)


def is_terminal() -> bool:
    return sys.stdin.isatty()
