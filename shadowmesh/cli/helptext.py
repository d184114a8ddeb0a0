"""How the help of a command is set: lines broken at spaces only, nothing cut off.

Owns: the breaking of lines. Does not know: what the help says; click puts it together.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

import click

#: click's mark of a paragraph whose lines stay as they are
_AS_IT_IS = "\b"
_LEAST_WIDTH = 20


class HelpFormatter(click.HelpFormatter):
    """click's own, but an option, a path or a hyphened word is never broken in two."""

    def write_text(self, text: str) -> None:
        """Write paragraphs, separated by empty lines."""
        indent = " " * self.current_indent
        paragraphs = []
        for paragraph in text.split("\n\n"):
            lines = paragraph.strip("\n").split("\n")
            if lines[0].strip(" ") == _AS_IT_IS:
                paragraphs.append("\n".join(f"{indent}{line}".rstrip() for line in lines[1:]))
            else:
                set_lines = _lines(paragraph, self.width - self.current_indent)
                paragraphs.append("\n".join(f"{indent}{line}" for line in set_lines))
        self.write("\n\n".join(paragraphs) + "\n")

    def write_dl(
        self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2
    ) -> None:
        """Write terms and what they mean, in two columns."""
        rows = list(rows)
        indent = " " * self.current_indent
        first = min(max(len(term) for term, _ in rows), col_max) + col_spacing
        for term, meaning in rows:
            lines = _lines(meaning, self.width - self.current_indent - first)
            if len(term) > first - col_spacing:
                lines = ["", *lines]
            terms = (term, *[""] * len(lines))
            for left, right in zip(terms, lines or [""], strict=False):
                self.write(f"{indent}{left:<{first}}{right}".rstrip() + "\n")


def _lines(text: str, width: int) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()),
        max(width, _LEAST_WIDTH),
        break_long_words=False,
        break_on_hyphens=False,
    )


class Context(click.Context):
    """Of every command of the program."""

    formatter_class = HelpFormatter
