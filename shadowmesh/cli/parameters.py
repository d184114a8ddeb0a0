"""Kinds of option values that several commands take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from shadowmesh.base.errors import ShadowMeshError
from shadowmesh.cli.settings import Settings

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

#: a shell that completes a line waits for the answer
_COMPLETION_S: Final = 1.0

#: words of `shadowmesh invite` in the place of a name
RESERVED_NAMES: Final = ("list", "cancel")


class Duration(click.ParamType):  # type: ignore[type-arg]  # older releases are not generic
    """A time as in the configuration, in seconds: 500ms, 30s, 2m, and also 30d."""

    name = "duration"

    def __init__(self, longest_s: float, shortest_s: float = 0.0) -> None:
        self._longest_s = longest_s
        self._shortest_s = shortest_s

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        # Not at the top: most commands have no durations.
        from shadowmesh.config.values import duration

        if isinstance(value, float):
            return value
        try:
            return duration(self._shortest_s, self._longest_s)(_in_hours(str(value)))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _in_hours(text: str) -> str:
    """Return a number of days as one of hours, which is as long as the configuration's times get."""
    days = text.removesuffix("d")
    whole = days != text and days.isascii() and days.isdigit() and len(days) <= 5
    return f"{int(days) * 24}h" if whole else text


class MemberName(click.ParamType):  # type: ignore[type-arg]  # as above
    """The name of a member to be; what it may look like is for the daemon to say."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in RESERVED_NAMES:
            self.fail(
                f"no member can be called {value}, for that is a word of `shadowmesh invite`",
                param,
                ctx,
            )
        return str(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the words that may stand in the place of the name."""
        from click.shell_completion import CompletionItem

        words = ctx.command.commands if isinstance(ctx.command, click.Group) else {}
        return [CompletionItem(word) for word in sorted(words) if word.startswith(incomplete)]


class HostAndPort(click.ParamType):  # type: ignore[type-arg]  # as above
    """An address as the daemon shows it in full; without a port it gets the one of peers."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        # Not at the top: as above.
        from shadowmesh.config.values import peer

        try:
            return str(peer(str(value)))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class PeerName(click.ParamType):  # type: ignore[type-arg]  # as above
    """The name of a peer, which the shell completes; whether there is one is for the daemon to say."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return str(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the peers of the running daemon; none when it cannot be asked."""
        # Not at the top: wanted while a shell completes a line.
        from click.shell_completion import CompletionItem

        try:
            peers = ctx.ensure_object(Settings).client().peers(_COMPLETION_S)["peers"]
        except ShadowMeshError:
            return []
        names = [str(peer.get("name")) for peer in peers if isinstance(peer, dict)]
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]
