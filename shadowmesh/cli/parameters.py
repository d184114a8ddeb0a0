"""Kinds of option values that several commands take."""

from __future__ import annotations

from typing import Any

import click


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
