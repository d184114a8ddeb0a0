"""What a value of a request may be, and the check of one against that.

Owns: the part of JSON Schema that `check` understands: `type`, `enum`, `minimum`, `maximum`,
`maxLength`, the formats in `FORMATS`, and of an array `items` and `maxItems`, which it must have.
Does not know: Flask, routes. What a refusal says repeats no value but one that has a format, for it
may be a secret.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from shadowmesh.base.errors import BadRequest
from shadowmesh.config.values import peer
from shadowmesh.device.facts import parse_target

Schema = Mapping[str, Any]


def _invitation_id(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{16}", text):
        raise ValueError("must be 16 hexadecimal digits in lower case")
    return text


def _digest(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise ValueError("must be 64 hexadecimal digits in lower case")
    return text


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise ValueError("must be base64, with its padding and without line breaks") from None


#: format: the function that raises ValueError for a text that is not of it
FORMATS: Final[Mapping[str, Callable[[str], object]]] = {
    "host:port": peer,
    "mac-or-ip": parse_target,
    "invitation-id": _invitation_id,
    "sha-256": _digest,
    "byte": _base64,
}

_TYPES: Final = {"string": str, "integer": int, "boolean": bool, "array": list}
#: how an integer stands in a query
_INTEGER: Final = re.compile(r"-?(0|[1-9][0-9]{0,17})")


@dataclass(frozen=True, slots=True)
class Value:
    """One member of a body, one query parameter or part of a path, which is always there.

    Attributes:
        required: a body without it is refused.
    """

    name: str
    schema: Schema
    description: str
    default: Any = None
    example: Any = None
    required: bool = False


def check(name: str, value: object, schema: Schema) -> None:
    """Check a value that was read from JSON.

    Raises:
        BadRequest: it does not fit the schema.
    """
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if value is None and "null" in kinds:
        return
    wanted = next(kind for kind in kinds if kind != "null")
    # True and False are integers to Python, not to JSON
    if not isinstance(value, _TYPES[wanted]) or (wanted == "integer" and isinstance(value, bool)):
        raise BadRequest(f"{name} must be of type {wanted}")
    if "enum" in schema and value not in schema["enum"]:
        raise BadRequest(f"{name} must be one of {', '.join(map(str, schema['enum']))}")
    if isinstance(value, int):
        low, high = schema.get("minimum", value), schema.get("maximum", value)
        if not low <= value <= high:
            raise BadRequest(f"{name} must be from {low} to {high}")
    if isinstance(value, list):
        if len(value) > schema["maxItems"]:
            raise BadRequest(f"{name} has more than {schema['maxItems']} entries")
        for at, item in enumerate(value):
            check(f"{name}[{at}]", item, schema["items"])
    if isinstance(value, str):
        if len(value) > schema.get("maxLength", len(value)):
            raise BadRequest(f"{name} is longer than {schema['maxLength']} characters")
        if "format" in schema:
            try:
                FORMATS[schema["format"]](value)
            except ValueError as error:
                raise BadRequest(f"{name} is not a {schema['format']}: {error}") from None


def check_members(given: Mapping[str, object], known: Sequence[Value]) -> dict[str, Any]:
    """Return the value of each known member, its default where it is not given.

    Raises:
        BadRequest: a member is unknown, missing or does not fit its schema.
    """
    unknown = sorted(set(given) - {value.name for value in known})
    if unknown:
        expected = ", ".join(sorted(value.name for value in known)) or "none"
        raise BadRequest(f'unknown field "{unknown[0][:40]}": this route knows {expected}')
    found = {}
    for value in known:
        found[value.name] = value.default
        if value.name in given:
            found[value.name] = _whole(given[value.name], value.schema)
            check(value.name, found[value.name], value.schema)
        elif value.required:
            raise BadRequest(f"{value.name} is missing")
    return found


def _whole(value: object, schema: Schema) -> object:
    """Return what JSON Schema calls an integer as one: 5.0 is 5."""
    if schema["type"] == "integer" and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def from_query(name: str, text: str, schema: Schema) -> object:
    """Return a query parameter's text as a value that `check` can look at.

    Raises:
        BadRequest: it cannot be one.
    """
    if schema["type"] == "integer":
        if not _INTEGER.fullmatch(text):
            raise BadRequest(f"{name} must be a whole number")
        return int(text)
    return text
