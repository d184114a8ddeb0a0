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


class Duration(click.ParamType):  # type: ignore[type-arg]  # older releases are not generic
    """A time as in the configuration, in seconds: 500ms, 30s, 2m."""

    name = "duration"

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        # Not at the top: most commands have no durations.
        from shadowmesh.config.values import duration

        if isinstance(value, float):
            return value
        try:
            return duration(0.0, self._longest_s)(str(value))
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
