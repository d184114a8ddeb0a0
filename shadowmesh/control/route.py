"""What one route of the control API is, and one refusal.

Owns: their form. Does not know: which there are (`routes`, `custody_routes`), Flask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from shadowmesh.base.errors import ControlError
from shadowmesh.control.rights import Right
from shadowmesh.control.schema import Value


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error that does not come from a `ControlError`."""

    http_status: int
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Route:
    """One route.

    Attributes:
        path: a name in braces stands for what varies.
        name: of the function that serves it.
        answer: name of the schema of a 200 answer in the document, or a media type.
        right: what a request must show. It is given for every route: none may have one by
            forgetting it.
        within: what varies in the path.
        body: members of the JSON object in the body; None: the route takes no body.
        also: further answers of the same schema as the 200 answer, by HTTP status.
    """

    method: str
    path: str
    name: str
    right: Right
    summary: str
    answer: str
    description: str = ""
    within: Sequence[Value] = ()
    body: Sequence[Value] | None = None
    query: Sequence[Value] = ()
    errors: Sequence[type[ControlError] | Refusal] = ()
    also: Mapping[int, str] = field(default_factory=dict)
