"""Reading the configuration file: YAML text to raw values with their lines.

Owns: what is YAML for us, a mapping of sections to mappings of keys to scalars or lists of
scalars, or to a list of such mappings, and every complaint about its form. Does not know: which
sections and keys exist and which of them are lists, nor what a value means: scalars stay text as
written, so that `1_000`, `012` and `no` are judged by the key they belong to and not by YAML's
guesses.

The parser's events are walked directly instead of building objects: memory and depth stay
bounded whatever the file holds, aliases and tags are seen before anything comes of them, and
every key keeps its line.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from shadowmesh.base.constants import MAX_CONFIG_BYTES, MAX_PEERS
from shadowmesh.base.errors import Problem
from shadowmesh.config.values import cut, show
from shadowmesh.keys.private_file import (
    group_name,
    hands_on_its_group,
    user_name,
    why_not_opened,
)

#: libyaml's parser is ten times as fast; both give the same events
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

#: root mapping, section, list; an item of a section that is a list counts as that section
_MAX_DEPTH = 3
#: what lies deeper is skipped, but not for ever: libyaml's time grows with the square of the depth
_MAX_SKIPPED_DEPTH = 16
#: of a section that is a list; the only one is that of the peers
MAX_ITEMS = MAX_PEERS
#: whoever made this many mistakes needs no more; keeps hostile files cheap
MAX_PROBLEMS = 50

_NOT_YAML_TEXT = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
#: users below it are services (UID_MIN of login.defs)
_FIRST_PERSON = 1000
_TAG_PREFIX = "tag:yaml.org,2002:"

#: what a raw value is: the type that YAML sees in it, or the text of a flag or variable
Kind = Literal["text", "str", "int", "float", "bool", "null", "list", "mapping", "other"]
_KINDS: dict[str, Kind] = {
    "str": "str", "int": "int", "float": "float", "bool": "bool", "null": "null",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Raw:
    """A value before it is checked: its text as written; a list's parts in `items`."""

    kind: Kind
    text: str = ""
    items: tuple[Raw, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """`section.key` of the file, with the line it stands on."""

    section: str
    key: str
    raw: Raw
    line: int


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a section that is a list, with the line it begins on.

    `entries` is None when the item is not a mapping.
    """

    line: int
    entries: Sequence[Entry] | None


@dataclass(frozen=True, slots=True)
class Section:
    """A section of the file, with the line of its name.

    `kind` is that of its value: mapping, list, null for an empty one, or a scalar; `items` are
    those of a list.
    """

    line: int
    kind: Kind
    items: Sequence[Item] = ()


@dataclass(frozen=True, slots=True)
class FileContent:
    """What a configuration file holds.

    Attributes:
        entries: in the order of the file; sections and keys are unique but may be unknown.
        sections: by their names, also empty ones.
        problems: what is wrong with the form; the entries are then incomplete.
        mode: permission bits of a regular file, 0 for others; without that of the group to read
            where the group is meant to.
    """

    entries: tuple[Entry, ...]
    sections: dict[str, Section]
    problems: tuple[Problem, ...]
    mode: int


def read(path: Path) -> FileContent | None:
    """Return the content of a file; None when there is no such file.

    A file that exists but cannot be read or is not UTF-8 YAML of at most 1 MB gives problems.
    """
    try:
        with path.open("rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            data = _read_capped(file.fileno())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        message = _why_unreadable(path, error)
        return FileContent((), {}, (Problem(str(path), None, None, message),), 0)
    except OSError as error:
        message = f"cannot be read: {error.strerror}; check the path and its permissions"
        return FileContent((), {}, (Problem(str(path), None, None, message),), 0)
    mode = stat.S_IMODE(status.st_mode) if stat.S_ISREG(status.st_mode) else 0
    ours = status.st_uid == os.geteuid() != 0
    if not ours or hands_on_its_group(path.parent, status.st_gid):
        # As with every private file: what is not our own can only come to us through its group.
        mode &= ~stat.S_IRGRP
    return parse(data, str(path), mode)


def _why_unreadable(path: Path, error: PermissionError) -> str:
    """Say why a file may not be read, and what to do that gives it to nobody else.

    A file that may hold encryption.key is not given to the group of whoever asks: that can be a
    person at a terminal, whose group would get the secret and the service lose it.
    """
    try:
        group = path.parent.stat().st_gid
    except OSError:
        group = 0
    if group in (os.getegid(), *os.getgroups()) and hands_on_its_group(path.parent, group):
        name = group_name(group)
        return f"may not be read; as root: `chgrp {name} {path} && chmod 640 {path}`"
    if os.geteuid() < _FIRST_PERSON:
        return why_not_opened(path, error)
    return (
        f"may not be read by {user_name(os.geteuid())}; run the command as root or as the user of"
        " the daemon, or name a file of your own with --config"
    )


def parse(data: bytes, source: str, mode: int = 0) -> FileContent:
    """Return the content of the bytes of a file; `source` names it in problems."""
    reader = _Reader(source)
    text = reader.decode(data)
    if text is not None:
        reader.walk(text)
    return FileContent(tuple(reader.entries), reader.sections, tuple(reader.problems), mode)


def _read_capped(descriptor: int) -> bytes:
    """Return at most one byte more than the cap, also from pipes that give less per read."""
    parts: list[bytes] = []
    wanted = MAX_CONFIG_BYTES + 1
    while wanted and (part := os.read(descriptor, wanted)):
        parts.append(part)
        wanted -= len(part)
    return b"".join(parts)


class _StopError(Exception):
    """Ends the walk; what was found so far is reported, and this."""


class _Reader:
    """One pass over one file."""

    def __init__(self, source: str) -> None:
        self.entries: list[Entry] = []
        self.sections: dict[str, Section] = {}
        self.problems: list[Problem] = []
        self._source = source
        self._resolver = yaml.resolver.Resolver()

    def problem(self, line: int | None, key: str | None, message: str) -> None:
        self.problems.append(Problem(self._source, line, key, message))
        if len(self.problems) >= MAX_PROBLEMS:
            raise _StopError("too many problems; the rest is not shown")

    def decode(self, data: bytes) -> str | None:
        """Return the text; None, with a problem noted, when it cannot be YAML."""
        if len(data) > MAX_CONFIG_BYTES:
            self.problem(None, None, f"is larger than {MAX_CONFIG_BYTES} bytes")
            return None
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            self.problem(line, None, f"is not UTF-8: byte 0x{data[error.start]:02x}")
            return None
        bad = _NOT_YAML_TEXT.search(text)
        if bad is not None:
            line = text.count("\n", 0, bad.start()) + 1
            what = "a NUL byte" if bad[0] == "\0" else f"character U+{ord(bad[0]):04X}"
            self.problem(line, None, f"holds {what}; is the file damaged?")
            return None
        return text

    def walk(self, text: str) -> None:
        """Fill entries, sections and problems from the text."""
        loader = _Loader(text)
        events = self._events(loader)
        documents = 0
        try:
            for event in events:
                if not isinstance(event, yaml.DocumentStartEvent):
                    continue
                documents += 1
                if documents > 1:
                    message = "a second document; one file is one document"
                    self.problem(_line(event), None, message)
                    break
                self._root(events)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = None if mark is None else mark.line + 1
            # libyaml's sentences are about structure and quote no content
            self.problems.append(
                Problem(self._source, line, None, f"is not valid YAML: {error.problem}")
            )
        except yaml.YAMLError:
            self.problems.append(Problem(self._source, None, None, "is not valid YAML"))
        except _StopError as error:
            self.problems.append(Problem(self._source, None, None, str(error)))
        finally:
            loader.dispose()

    @staticmethod
    def _events(loader: yaml.SafeLoader) -> Iterator[yaml.Event]:
        while loader.check_event():
            yield loader.get_event()  # type: ignore[no-untyped-call]

    def _root(self, events: Iterator[yaml.Event]) -> None:
        event = next(events)
        if not isinstance(event, yaml.MappingStartEvent):
            line = _line(event)
            raw = self._value(event, events, None, depth=1)
            # a file of comments only is one empty scalar
            if raw.kind != "null":
                self.problem(line, None, "must hold sections, like `network:`, at its left edge")
            return
        self._collection(event, None)
        for name_event in events:
            if isinstance(name_event, yaml.MappingEndEvent):
                return
            line = _line(name_event)
            section = self._name(name_event, events, depth=1)
            value = next(events)
            if section is None:
                self._value(value, events, None, depth=1)
                continue
            if section in self.sections:
                self.problem(
                    line,
                    cut(section),
                    f"the section stands twice, first on line {self.sections[section].line}",
                )
            self._section(section, line, value, events)

    def _section(
        self, name: str, line: int, start: yaml.Event, events: Iterator[yaml.Event]
    ) -> None:
        """Take the section whose value begins with start."""
        if isinstance(start, yaml.MappingStartEvent):
            self.sections.setdefault(name, Section(line, "mapping"))
            self._mapping(name, start, events, self.entries)
        elif isinstance(start, yaml.SequenceStartEvent):
            items: list[Item] = []
            self.sections.setdefault(name, Section(line, "list", items))
            self._list(name, start, events, items)
        else:
            raw = self._value(start, events, cut(name), depth=1)
            self.sections.setdefault(name, Section(line, raw.kind))

    def _list(
        self,
        section: str,
        start: yaml.SequenceStartEvent,
        events: Iterator[yaml.Event],
        into: list[Item],
    ) -> None:
        self._collection(start, cut(section))
        for event in events:
            if isinstance(event, yaml.SequenceEndEvent):
                return
            line = _line(event)
            if len(into) == MAX_ITEMS:
                if isinstance(event, yaml.CollectionStartEvent):
                    _skip(events)
                _skip(events)
                self.problem(line, cut(section), f"at most {MAX_ITEMS} items, this is one more")
                return
            if isinstance(event, yaml.MappingStartEvent):
                entries: list[Entry] = []
                into.append(Item(line, entries))
                self._mapping(section, event, events, entries)
            else:
                self._value(event, events, cut(section), depth=2)
                into.append(Item(line, None))

    def _mapping(
        self,
        section: str,
        start: yaml.MappingStartEvent,
        events: Iterator[yaml.Event],
        into: list[Entry],
    ) -> None:
        """Take the keys of a section, or of an item of one."""
        self._collection(start, cut(section))
        seen = {entry.key: entry.line for entry in into if entry.section == section}
        for name_event in events:
            if isinstance(name_event, yaml.MappingEndEvent):
                return
            line = _line(name_event)
            key = self._name(name_event, events, depth=2)
            name = cut(section if key is None else f"{section}.{key}")
            raw = self._value(next(events), events, name, depth=2)
            if key is None:
                continue
            if key in seen:
                self.problem(line, name, f"stands twice, first on line {seen[key]}")
                continue
            seen[key] = line
            into.append(Entry(section, key, raw, line))

    def _name(self, event: yaml.Event, events: Iterator[yaml.Event], depth: int) -> str | None:
        """Return the name of a section or key; None, with a problem noted, for anything else."""
        raw = self._value(event, events, None, depth)
        if raw.kind in {"list", "mapping", "other"}:
            self.problem(_line(event), None, "a name must be plain text")
            return None
        return raw.text

    def _value(
        self, event: yaml.Event, events: Iterator[yaml.Event], key: str | None, depth: int
    ) -> Raw:
        """Return the value that begins with event and take the rest of it from events."""
        line = _line(event)
        if isinstance(event, yaml.AliasEvent):
            self.problem(line, key, "aliases (*name) are not allowed; write the value out")
            return Raw("other")
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event, key)
        assert isinstance(event, yaml.CollectionStartEvent)
        self._collection(event, key)
        if isinstance(event, yaml.SequenceStartEvent) and depth < _MAX_DEPTH:
            items: list[Raw] = []
            for item in events:
                if isinstance(item, yaml.SequenceEndEvent):
                    break
                items.append(self._value(item, events, key, depth + 1))
            return Raw("list", items=tuple(items))
        _skip(events)
        return Raw("list" if isinstance(event, yaml.SequenceStartEvent) else "mapping")

    def _scalar(self, event: yaml.ScalarEvent, key: str | None) -> Raw:
        line = _line(event)
        if event.anchor is not None:
            self.problem(line, key, "anchors (&name) are not allowed; write the value out")
        tag = event.tag
        if tag is None or tag == "!":
            tag = self._resolver.resolve(  # type: ignore[no-untyped-call]
                yaml.ScalarNode, event.value, event.implicit
            )
        kind = _KINDS.get(tag.removeprefix(_TAG_PREFIX))
        if kind is not None:
            return Raw("null") if kind == "null" else Raw(kind, event.value)
        if event.tag is not None:
            self.problem(line, key, "tags (!name) are not allowed; write the plain value")
            return Raw("other")
        # what YAML takes for a date, `=` or `<<` is text to us
        return Raw("str", event.value)

    def _collection(self, event: yaml.CollectionStartEvent, key: str | None) -> None:
        line = _line(event)
        if event.anchor is not None:
            self.problem(line, key, "anchors (&name) are not allowed; write the value out")
        if event.tag is not None:
            self.problem(line, key, "tags (!name) are not allowed; write the plain value")


def _line(event: yaml.Event) -> int:
    """Return the line of an event, counted from 1."""
    return 0 if event.start_mark is None else event.start_mark.line + 1


def _skip(events: Iterator[yaml.Event]) -> None:
    """Take the rest of a list or mapping whose start was taken."""
    depth = 1
    while depth:
        event = next(events)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_SKIPPED_DEPTH:
                raise _StopError("is nested too deeply; the rest was not read")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def shown(raw: Raw) -> str:
    """Return a raw value for an error message."""
    if raw.kind == "list":
        return "a list"
    if raw.kind in {"mapping", "other"}:
        return "a structure"
    return "nothing" if raw.kind == "null" else show(raw.text)
