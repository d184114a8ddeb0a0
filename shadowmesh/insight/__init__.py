"""What the daemon knows about itself, as values: status, events, health, explanations, captures.

Owns: the words in which an operator reads about the tunnel. Does not know: the live objects
(whoever owns them hands values in), HTTP, the CLI.
"""

#: what the rest of the program may import; all else is private
__all__ = [
    "capture",
    "custody",
    "events",
    "explain",
    "form",
    "frame_words",
    "health",
    "histogram",
    "history",
    "metrics",
    "network",
    "network_health",
    "pcapng",
    "peers",
    "resources",
    "rotation",
    "status",
    "surroundings",
    "table",
    "vitals",
]
