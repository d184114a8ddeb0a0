from typing import TypedDict

class BuildInfo(TypedDict):
    libsodium: str
    aegis256: bool

def build_info() -> BuildInfo: ...
