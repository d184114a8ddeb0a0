"""The OpenAPI 3.1 document of the control API.

Owns: the form of the document. What is in it comes from the table in `routes`, which the API
validates with, and from the dataclasses of `insight`, whose JSON forms the API answers with. Does not know: Flask.

Loaded when somebody asks for the document, and not kept: it is rarely wanted, and 100 KiB.
"""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from shadowmesh import __version__
from shadowmesh.control.route import Refusal, Route
from shadowmesh.control.routes import ROUTES, refusals
from shadowmesh.control.schema import Value
from shadowmesh.insight.custody import ANSWERS as OF_CUSTODY
from shadowmesh.insight.events import Event
from shadowmesh.insight.explain import Step
from shadowmesh.insight.form import SCHEMA
from shadowmesh.insight.history import Stretch
from shadowmesh.insight.network import (
    Admission,
    Founded,
    InvitationReport,
    Invited,
    NetworkReport,
    Relays,
)
from shadowmesh.insight.peers import PeerReport, PeerStatus, Pong
from shadowmesh.insight.rotation import ANSWERS as OF_ROTATION
from shadowmesh.insight.status import STATES, Check, Snapshot

Json = dict[str, Any]

_DESCRIPTION: Final = """\
Control API of one ShadowMesh daemon, on loopback and on a Unix socket. Every route but `/`,
`/health` and those below it wants the token of `api.token` in the daemon's `state_dir`, or over the
Unix socket a caller who is root, the daemon's user or in a group: `shadowmesh-admin` for what
changes something or shows frames, `shadowmesh-view` for the rest. Requests of web pages (with Origin
or Referer) are refused, as are those whose Host is neither the listen address nor localhost.
Names in answers are only ever added while `schema` stays 1: ignore those you do not know.
"""

#: what is an answer by itself, with the number of its schema
_WHOLE_ANSWERS: Final = (Snapshot, Founded, Invited, Admission, Relays, *OF_CUSTODY, *OF_ROTATION)
#: objects that are null where there is not one peer, or no network
_OR_NULL: Final = {("Snapshot", name) for name in ("peer", "paths", "session", "link", "network")}
#: what a dataclass does not say about a field
_MORE: Final[Mapping[tuple[str, str], Json]] = {
    ("Snapshot", "state"): {"enum": list(STATES)},
    ("PeerStatus", "state"): {"enum": list(STATES)},
    ("PeerReport", "state"): {"enum": list(STATES)},
    ("Path", "loss"): {"minimum": 0, "maximum": 1},
    ("Event", "fields"): {"additionalProperties": True},
    ("InvitationReport", "state"): {"enum": ["open", "used", "expired", "cancelled"]},
}
_BASIC: Final = {str: "string", int: "integer", float: "number", bool: "boolean"}
_ERROR: Final = {"$ref": "#/components/schemas/Error"}


def document(*, closed: bool = False) -> Json:
    """Return the document.

    Args:
        closed: no object may hold more than is described, for tests; a client must be able to
            live with more.
    """
    schemas: Json = {}
    for kind in (
        *_WHOLE_ANSWERS, Event, Check, Pong, Step, Stretch, PeerStatus, PeerReport, NetworkReport,
        InvitationReport,
    ):  # fmt: skip
        _add(schemas, kind)
    schemas.update(_envelopes())
    content = {
        "openapi": "3.1.0",
        "info": {
            "title": "ShadowMesh control API",
            "version": __version__,
            "description": _DESCRIPTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/", "description": "where this document came from"}],
        "paths": _paths(),
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "the 43 characters of `api.token` in the daemon's state_dir",
                }
            },
        },
    }
    if closed:
        _close(content["components"])
    return content


# --- Routes -----------------------------------------------------------------------------------


def _paths() -> Json:
    paths: Json = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return paths


def _operation(route: Route) -> Json:
    answers: Json = {}
    if route.answer == "websocket":
        answers["101"] = {"description": "messages of the schema FeedMessage follow"}
    else:
        answers["200"] = {"description": route.summary, "content": _content(route.answer)}
    for status, text in route.also.items():
        answers[str(status)] = {"description": text, "content": _content(route.answer)}
    for status, found in _by_status(refusals(route)).items():
        answers.setdefault(str(status), _refused(found))
    operation: Json = {
        "operationId": route.name,
        "summary": route.summary,
        "x-right": route.right.name.lower(),
        "security": [{"token": []}] if route.right else [{}, {"token": []}],
        "responses": dict(sorted(answers.items())),
    }
    if route.description:
        operation["description"] = route.description
    parameters = [_parameter(value, "path") for value in route.within]
    parameters += [_parameter(value, "query") for value in route.query]
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        operation["requestBody"] = {
            "required": any(value.required for value in route.body),
            "content": {"application/json": {"schema": _body(route.body)}},
        }
    return operation


def _content(answer: str) -> Json:
    if answer == "object":
        return {"application/json": {"schema": {"type": "object"}}}
    if "/" in answer:
        return {answer: {"schema": {"type": "string"}}}
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{answer}"}}}


def _by_status(found: Sequence[Refusal]) -> dict[int, list[Refusal]]:
    grouped: dict[int, list[Refusal]] = {}
    for refusal in found:
        grouped.setdefault(refusal.http_status, []).append(refusal)
    return grouped


def _refused(found: Sequence[Refusal]) -> Json:
    code = {"type": "object", "properties": {"code": {"enum": [one.code for one in found]}}}
    schema = {"allOf": [_ERROR, {"type": "object", "properties": {"error": code}}]}
    answer: Json = {
        "description": "; ".join(f"`{one.code}`: {one.text}" for one in found),
        "content": {"application/json": {"schema": schema}},
    }
    if found[0].http_status == 429:
        answer["headers"] = {
            "Retry-After": {"description": "seconds", "schema": {"type": "integer"}}
        }
    return answer


def _parameter(value: Value, place: str) -> Json:
    return {
        "name": value.name,
        "in": place,
        "required": place == "path",
        "description": value.description,
        "schema": {
            **value.schema,
            **({} if value.default is None else {"default": value.default}),
        },
    }


def _body(known: Sequence[Value]) -> Json:
    required = [value.name for value in known if value.required]
    return {
        "type": "object",
        "properties": {
            value.name: {
                **value.schema,
                "description": value.description,
                **({} if value.example is None else {"examples": [value.example]}),
            }
            for value in known
        },
        **({"required": required} if required else {}),
        "additionalProperties": False,
    }


# --- Answers that are no dataclass ------------------------------------------------------------


def _envelopes() -> Json:
    number = {"type": "integer", "const": SCHEMA, "description": "grows with incompatible changes"}
    text = {"type": "string"}
    now = {"type": "string", "format": "date-time", "description": "when it was told"}
    names = {"type": "array", "items": text}
    error = _object({"code": text, "message": text})
    checks: Json = {"type": "object", "additionalProperties": _check_without_name()}
    return {
        "Error": {**_object({"error": error}), "description": "why a request failed"},
        "Health": {
            **_object(
                {
                    "schema": number,
                    "status": {"enum": ["ok", "failing"]},
                    "failing": {**names, "description": "checks of severity error that fail"},
                    "checks": {**checks, "description": "by name"},
                    "error": {**error, "description": "only with status 503"},
                },
                optional=("error",),
            ),
        },
        "Liveness": _object({"schema": number, "status": {"const": "alive"}}),
        "Readiness": _object(
            {
                "schema": number,
                "status": {"enum": ["ready", "not_ready"]},
                "failing": {**names, "description": "names of the checks that fail"},
                "error": {**error, "description": "only with status 503"},
            },
            optional=("error",),
        ),
        "Pings": _object(
            {
                "schema": number,
                "answers": {"type": "array", "items": {"$ref": "#/components/schemas/Pong"}},
            }
        ),
        "Peers": _object(
            {
                "schema": number,
                "now": now,
                "peers": {"type": "array", "items": {"$ref": "#/components/schemas/PeerStatus"}},
            }
        ),
        "PeerAnswer": _object(
            {"schema": number, "now": now, "peer": {"$ref": "#/components/schemas/PeerReport"}}
        ),
        "Table": _object(
            {
                "schema": number,
                "entries": {"type": "array", "items": {"$ref": "#/components/schemas/Entry"}},
            }
        ),
        "NetworkAnswer": _object(
            {
                "schema": number,
                "network": {
                    "anyOf": [{"$ref": "#/components/schemas/NetworkReport"}, {"type": "null"}]
                },
            }
        ),
        "CertificateAnswer": _object(
            {
                "schema": number,
                "certificate": {
                    "anyOf": [
                        {"$ref": "#/components/schemas/CertificateReport"},
                        {"type": "null"},
                    ]
                },
            }
        ),
        "Invitations": _object(
            {
                "schema": number,
                "invitations": {
                    "type": "array",
                    "items": {"$ref": "#/components/schemas/InvitationReport"},
                },
            }
        ),
        "Cancelled": _object(
            {
                "schema": number,
                "cancelled": {"type": "integer", "description": "that were open"},
            }
        ),
        "Removed": _object(
            {"schema": number, "removed": {**names, "description": "members that are out now"}}
        ),
        "Reloaded": _object(
            {
                "schema": number,
                "pid": {"type": "integer", "description": "of the daemon"},
                "applied": {**names, "description": "keys that have their new value"},
                "restart": {**names, "description": "keys that wait for a restart"},
            }
        ),
        "Configuration": _object(
            {
                "schema": number,
                "pid": {"type": "integer", "description": "of the daemon"},
                "file": {"type": ["string", "null"], "description": "that was loaded"},
                "values": {
                    "type": "object",
                    "additionalProperties": _object(
                        {
                            "value": {"description": "a duration is text, a secret is `***`"},
                            "source": {**text, "description": "where it comes from"},
                        }
                    ),
                    "description": "by key",
                },
                "peers": {
                    "type": ["array", "null"],
                    "items": _object(
                        {
                            "name": text,
                            "public_key": text,
                            "address": {**text, "description": "empty: it is waited for"},
                            "auto_connect": {"type": "boolean"},
                            "tunnel_ips": names,
                            "allowed_macs": {
                                "type": ["string", "array"],
                                "items": text,
                                "description": "`any`, `own` or the addresses",
                            },
                            "source": {**text, "description": "where it stands"},
                        }
                    ),
                    "description": "that `peers:` lists; null without it",
                },
                "text": {**text, "description": "the same as YAML, for people"},
            }
        ),
        "Explanation": _object(
            {
                "schema": number,
                "target": {"type": ["string", "null"], "description": "that was asked about"},
                "delivered": {"type": "boolean", "description": "no step fails"},
                "summary": {**text, "description": "one sentence"},
                "steps": {
                    "type": "array",
                    "items": {"$ref": "#/components/schemas/Step"},
                    "description": "in the order in which a frame meets them",
                },
            }
        ),
        "History": _object(
            {
                "schema": number,
                "now": now,
                "stretches": {
                    "type": "array",
                    "items": {"$ref": "#/components/schemas/Stretch"},
                    "description": "the finest resolution first; none in the first second",
                },
            }
        ),
        "Events": _object(
            {
                "schema": number,
                "events": {"type": "array", "items": {"$ref": "#/components/schemas/Event"}},
            }
        ),
        "FeedMessage": {
            "description": "one text message of `GET /events`",
            "oneOf": [
                _object(
                    {
                        "type": {"const": "snapshot"},
                        "snapshot": {"$ref": "#/components/schemas/Snapshot"},
                    }
                ),
                _object(
                    {
                        "type": {"const": "events"},
                        "events": {
                            "type": "array",
                            "items": {"$ref": "#/components/schemas/Event"},
                        },
                    }
                ),
            ],
        },
    }


def _object(properties: Json, optional: Sequence[str] = ()) -> Json:
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
    }


def _check_without_name() -> Json:
    schemas: Json = {}
    _add(schemas, Check)
    check: Json = schemas["Check"]
    del check["properties"]["name"]
    check["required"] = ["ok", "severity", "code"]
    return check


# --- Dataclasses ------------------------------------------------------------------------------


def _add(schemas: Json, kind: type) -> None:
    """Describe a dataclass whose `to_dict` has the names of its fields, and what it refers to."""
    hints = get_type_hints(kind)
    described: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        described |= _attributes(each.__doc__ or "")
    properties: Json = {}
    if kind in _WHOLE_ANSWERS:
        properties["schema"] = {"type": "integer", "const": SCHEMA}
    for one in dataclasses.fields(kind):
        member = _member(schemas, one.name, hints[one.name])
        if (kind.__name__, one.name) in _OR_NULL:
            member = {"anyOf": [member, {"type": "null"}]}
        member |= _MORE.get((kind.__name__, one.name), {})
        if one.name in described:
            member["description"] = described[one.name]
        properties[one.name] = member
    summary = (kind.__doc__ or "").partition("\n\n")[0]
    schemas[kind.__name__] = {**_object(properties), "description": " ".join(summary.split())}


def _member(schemas: Json, name: str, hint: Any) -> Json:
    """Return the schema of one field."""
    if get_origin(hint) in (Union, types.UnionType):
        inner = [one for one in get_args(hint) if one is not types.NoneType]
        if len(inner) != 1:
            raise TypeError(f"{name}: {hint} has no schema")
        member = _member(schemas, name, inner[0])
        if "$ref" in member:
            return member  # told as an object whose members are null
        if "enum" in member:
            return {"enum": [*member["enum"], None]}
        return {**member, "type": [member["type"], "null"]}
    if dataclasses.is_dataclass(hint):
        _add(schemas, hint)
        return {"$ref": f"#/components/schemas/{hint.__name__}"}
    origin = get_origin(hint)
    if origin is Literal:
        return {"enum": list(get_args(hint))}
    if origin in (Sequence, tuple):
        return {"type": "array", "items": _member(schemas, name, get_args(hint)[0])}
    if origin is Mapping:
        value = get_args(hint)[1]
        return {
            "type": "object",
            "additionalProperties": True if value is Any else _member(schemas, name, value),
        }
    if hint is float and (
        name in ("since", "now", "time", "until") or name.endswith(("_at", "_after"))
    ):
        return {"type": "string", "format": "date-time"}
    return {"type": _BASIC[hint]}


def _attributes(docstring: str) -> dict[str, str]:
    """Return what the section "Attributes" says about each name."""
    _, found, section = docstring.partition("Attributes:\n")
    described: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines() if found else ():
        match = re.match(r" {8}(\w+(?:, \w+)*): (.*)", line)
        if match:
            names = match[1].split(", ")
            described.update(dict.fromkeys(names, match[2]))
        elif line.startswith(" " * 12):
            described.update({name: f"{described[name]} {line.strip()}" for name in names})
    return {name: _as_markdown(text) for name, text in described.items()}


def _as_markdown(text: str) -> str:
    return re.sub(r"\bNone\b", "null", text.replace("``", "`"))


def _close(schema: Any) -> None:
    """Forbid what is not described, in place."""
    if isinstance(schema, dict):
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
        for value in schema.values():
            _close(value)
    elif isinstance(schema, list):
        for value in schema:
            _close(value)
