"""Tests of keys: text forms, refused keys, private files."""

from __future__ import annotations

import base64
import errno
import os
import pickle
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowmesh.base.errors import KeyFileError, NotPermitted
from shadowmesh.keys import private_file, sodium
from shadowmesh.keys.api_token import load_or_create_token, read_token
from shadowmesh.keys.identity import (
    Identity,
    format_public_key,
    generate_seed,
    load_or_create_identity,
    parse_public_key,
    parse_seed,
)
from shadowmesh.keys.private_file import write_private_file
from shadowmesh.keys.psk import generate_psk, parse_psk

SEED = bytes(range(1, 33))
#: a user and a group without a name
SERVICE = 4321
GOOD_PSK = "38aa9f4f4e267cab95bf6380d211807740623e3a50b4e4aed32703b79297c20a"
SAMPLE_PSK = "0123456789abcdef" * 4


def entries(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def write(path: Path, data: bytes, mode: int = 0o600) -> None:
    path.write_bytes(data)
    path.chmod(mode)


# --- Pre-shared keys --------------------------------------------------------------------------


def test_a_good_psk_is_accepted_in_either_case() -> None:
    assert parse_psk(GOOD_PSK) == bytes.fromhex(GOOD_PSK)
    assert parse_psk(GOOD_PSK.upper()) == bytes.fromhex(GOOD_PSK)


def test_a_psk_with_sixteen_distinct_bytes_is_the_weakest_accepted() -> None:
    assert parse_psk((bytes(range(16)) * 2).hex())
    with pytest.raises(ValueError, match="distinct"):
        parse_psk((bytes(range(15)) * 2 + b"\0\1").hex())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "64 hexadecimal digits"),
        (GOOD_PSK[:-1], "64 hexadecimal digits"),
        (GOOD_PSK + "0", "64 hexadecimal digits"),
        (GOOD_PSK + "\n", "64 hexadecimal digits"),
        (GOOD_PSK[:-1] + "g", "only the characters"),
        (GOOD_PSK[:-1] + " ", "only the characters"),
        (GOOD_PSK[:-1] + "\N{FULLWIDTH DIGIT ONE}", "only the characters"),
        ("0x" + GOOD_PSK[2:], "only the characters"),
        ("00" * 32, "zeros"),
        (SAMPLE_PSK, "sample"),
        (SAMPLE_PSK.upper(), "sample"),
        ("ab" * 32, "distinct"),
    ],
)
def test_a_weak_or_malformed_psk_is_refused_without_quoting_it(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        parse_psk(text)
    message = str(caught.value)
    assert "genpsk" in message
    for start in range(len(text) - 7):
        assert text[start : start + 8] not in message
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_generated_keys_are_accepted_by_their_parsers() -> None:
    assert len(parse_psk(generate_psk())) == 32
    seed = parse_seed(generate_seed())
    public = Identity.from_seed(seed).public_key
    assert parse_public_key(format_public_key(public)) == public
    assert generate_seed() != generate_seed()


# --- base64 forms -----------------------------------------------------------------------------


@given(seed=st.binary(min_size=32, max_size=32))
def test_public_keys_survive_their_text_form(seed: bytes) -> None:
    public = sodium.public_key(seed)
    text = format_public_key(public)
    assert len(text) == 44
    assert parse_public_key(text) == public


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A" * 43,
        "A" * 45,
        format_public_key(sodium.public_key(SEED)) + "\n",
        " " + format_public_key(sodium.public_key(SEED)),
        format_public_key(sodium.public_key(SEED))[:-1],
        "A" * 41 + "A==",
        "A" * 20 + "*" + "A" * 22 + "=",
        "A" * 20 + "\N{LATIN SMALL LETTER E WITH ACUTE}" + "A" * 22 + "=",
        "A" * 42 + "B=",  # two spare bits set: a second spelling of zeros
    ],
)
def test_a_public_key_that_is_not_canonical_base64_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="base64"):
        parse_public_key(text)


@pytest.mark.parametrize("key", [bytes(32), b"\x01" + bytes(31), b"\xff" * 32])
def test_a_public_key_that_is_no_good_point_is_refused(key: bytes) -> None:
    with pytest.raises(ValueError, match="not a valid Ed25519"):
        parse_public_key(base64.b64encode(key).decode())


@given(text=st.text(max_size=60))
def test_parsers_raise_nothing_but_value_errors(text: str) -> None:
    for parse in (parse_psk, parse_public_key, parse_seed):
        with pytest.raises(ValueError):
            parse(text)


def test_a_seed_may_end_in_one_line_feed() -> None:
    text = base64.b64encode(SEED).decode()
    assert parse_seed(text) == parse_seed(text + "\n") == SEED
    for other in (text + "\n\n", text + "\r\n", text + " "):
        with pytest.raises(ValueError, match="private key"):
            parse_seed(other)


def test_a_seed_of_zeros_is_refused() -> None:
    with pytest.raises(ValueError, match="zeros"):
        parse_seed(base64.b64encode(bytes(32)).decode())


def test_a_bad_seed_is_not_quoted() -> None:
    text = base64.b64encode(SEED).decode()
    for bad in (text[:-1], text[:-2] + "*=", text + "x"):
        with pytest.raises(ValueError) as caught:
            parse_seed(bad)
        assert text[:8] not in str(caught.value)


# --- Identity ---------------------------------------------------------------------------------


def test_an_identity_signs_with_its_key() -> None:
    identity = Identity.from_seed(SEED)
    assert identity.public_key == sodium.public_key(SEED)
    assert sodium.verify(identity.public_key, b"text", identity.sign(b"text"))


def test_an_identity_does_not_show_its_seed() -> None:
    identity = Identity.from_seed(SEED)
    for text in (repr(identity), str(identity), f"{identity}"):
        assert format_public_key(identity.public_key) in text
        assert SEED.hex() not in text
        assert base64.b64encode(SEED).decode() not in text
    with pytest.raises(TypeError):
        pickle.dumps(identity)


# --- Identity file ----------------------------------------------------------------------------


def test_the_first_start_makes_a_private_file_and_the_second_reads_it(tmp_path: Path) -> None:
    state_dir = tmp_path / "a" / "state"
    first = load_or_create_identity(state_dir)
    path = state_dir / "identity.key"
    status = path.stat()
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert stat.S_IMODE(state_dir.stat().st_mode) == 0o700
    assert status.st_size == 32
    assert status.st_nlink == 1
    assert entries(state_dir) == ["identity.key"]
    assert load_or_create_identity(state_dir).public_key == first.public_key
    assert Identity.from_seed(path.read_bytes()).public_key == first.public_key


def test_a_file_made_under_an_open_umask_is_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_private_file(tmp_path / "open", b"x")
        os.umask(0o777)
        write_private_file(tmp_path / "closed", b"x")
    finally:
        os.umask(before)
    for name in ("open", "closed"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


@pytest.mark.parametrize("tail", [b"", b"\n"])
def test_the_output_of_genkey_can_be_installed(tmp_path: Path, tail: bytes) -> None:
    write(tmp_path / "identity.key", base64.b64encode(SEED) + tail)
    assert load_or_create_identity(tmp_path).public_key == sodium.public_key(SEED)


def test_a_read_only_identity_is_accepted(tmp_path: Path) -> None:
    write(tmp_path / "identity.key", SEED, 0o400)
    assert load_or_create_identity(tmp_path).public_key == sodium.public_key(SEED)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        SEED[:-1],
        SEED + b"\n",
        SEED * 2,
        base64.b64encode(SEED)[:-1],
        base64.b64encode(SEED) + b"\n\n",
        b"\xff" * 44,
        b"*" * 44,
        bytes(32),
        b"A" * 43 + b"=",
        b"x" * 5000,
    ],
)
def test_a_wrong_content_refuses_the_start_and_is_left_alone(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "identity.key"
    write(path, content)
    with pytest.raises(KeyFileError, match=r"identity\.key.*restore it") as caught:
        load_or_create_identity(tmp_path)
    assert path.read_bytes() == content
    assert entries(tmp_path) == ["identity.key"]
    if content:
        assert content[:8].decode("latin-1") not in str(caught.value)
        assert content[:8].hex() not in str(caught.value)


@pytest.mark.parametrize("mode", [0o604, 0o620, 0o644, 0o660, 0o700, 0o4600, 0o666])
def test_a_wrong_mode_refuses_the_start_and_is_left_alone(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "identity.key"
    write(path, SEED, mode)
    with pytest.raises(KeyFileError, match=f"mode {mode:04o}.*chmod 600"):
        load_or_create_identity(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert path.read_bytes() == SEED


def test_a_group_may_read_what_is_root_s_and_not_what_is_the_daemon_s(
    shared_directory: Path, as_user: Callable[..., AbstractContextManager[None]]
) -> None:
    path = shared_directory / "identity.key"
    write(path, SEED, 0o640)
    os.chown(path, 0, SERVICE)
    with as_user(SERVICE, SERVICE):
        assert load_or_create_identity(shared_directory).public_key == sodium.public_key(SEED)
    os.chown(path, SERVICE, SERVICE)
    with (
        as_user(SERVICE, SERVICE),
        pytest.raises(KeyFileError, match=f"mode 0640.*chmod 600 {path}"),
    ):
        load_or_create_identity(shared_directory)


def test_root_is_not_told_to_take_an_identity_from_the_service(shared_directory: Path) -> None:
    path = shared_directory / "identity.key"
    write(path, SEED)
    os.chown(path, SERVICE, SERVICE)
    with pytest.raises(
        KeyFileError, match=f"belongs to user {SERVICE}.*run the daemon as"
    ) as caught:
        load_or_create_identity(shared_directory)
    assert "chown" not in str(caught.value)


def test_what_root_left_tells_the_service_how_to_get_it(
    shared_directory: Path, as_user: Callable[..., AbstractContextManager[None]]
) -> None:
    path = shared_directory / "identity.key"
    write(path, SEED)
    remedy = f"belongs to root:root with mode 0600.*`chgrp {SERVICE} {path} && chmod 640 {path}`"
    with as_user(SERVICE, SERVICE), pytest.raises(KeyFileError, match=remedy):
        load_or_create_identity(shared_directory)
    os.chown(path, -1, SERVICE)
    path.chmod(0o640)
    with as_user(SERVICE, SERVICE):
        assert load_or_create_identity(shared_directory)


def test_another_service_s_file_is_nobody_s_to_use(
    shared_directory: Path, as_user: Callable[..., AbstractContextManager[None]]
) -> None:
    path = shared_directory / "identity.key"
    write(path, SEED, 0o604)
    os.chown(path, SERVICE + 1, SERVICE + 1)
    with (
        as_user(SERVICE, SERVICE),
        pytest.raises(KeyFileError, match=f"user {SERVICE + 1}.*`chown {SERVICE} {path}`"),
    ):
        load_or_create_identity(shared_directory)


def test_a_symbolic_link_refuses_the_start_even_to_a_good_file(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", SEED)
    (tmp_path / "identity.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeyFileError, match="symbolic link"):
        load_or_create_identity(tmp_path)


def test_a_dangling_symbolic_link_refuses_the_start_and_makes_nothing(tmp_path: Path) -> None:
    (tmp_path / "identity.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeyFileError, match="symbolic link"):
        load_or_create_identity(tmp_path)
    assert entries(tmp_path) == ["identity.key"]


def test_a_directory_refuses_the_start(tmp_path: Path) -> None:
    (tmp_path / "identity.key").mkdir(mode=0o700)
    with pytest.raises(KeyFileError, match="not a regular file"):
        load_or_create_identity(tmp_path)


def test_a_fifo_refuses_the_start_and_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "identity.key", 0o600)
    with pytest.raises(KeyFileError, match="not a regular file"):
        load_or_create_identity(tmp_path)


def test_a_state_directory_that_is_a_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"")
    with pytest.raises(KeyFileError, match="state"):
        load_or_create_identity(tmp_path / "state")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(KeyFileError, match=r"daemon\.state_dir"):
        load_or_create_identity(tmp_path / "link")


def test_descriptors_are_not_leaked(tmp_path: Path) -> None:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    (tmp_path / "identity.key").mkdir()
    (tmp_path / "api.token").mkdir()
    (tmp_path / "good").mkdir()
    before = count()
    for _ in range(3):
        with pytest.raises(KeyFileError):
            load_or_create_identity(tmp_path)
        with pytest.raises(KeyFileError):
            read_token(tmp_path / "api.token")
        load_or_create_identity(tmp_path / "good")
        with pytest.raises(FileExistsError):
            write_private_file(tmp_path / "good" / "identity.key", b"x")
    assert count() == before


# --- Writing ----------------------------------------------------------------------------------


def test_an_existing_name_is_not_overwritten_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_private_file(path, b"first")
    with pytest.raises(FileExistsError):
        write_private_file(path, b"second")
    assert path.read_bytes() == b"first"
    write_private_file(path, b"third", replace=True)
    assert path.read_bytes() == b"third"
    assert entries(tmp_path) == ["file"]


def test_replacing_a_symbolic_link_leaves_its_target_alone(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"target")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_private_file(tmp_path / "link", b"new", replace=True)
    assert (tmp_path / "target").read_bytes() == b"target"
    assert (tmp_path / "link").read_bytes() == b"new"
    assert not (tmp_path / "link").is_symlink()


def test_a_second_daemon_that_was_slower_uses_the_first_ones_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = private_file.write_private_file

    def too_late(path: Path, data: bytes) -> None:
        real(path, SEED)  # the other daemon, between our look and our write
        real(path, data)

    monkeypatch.setattr(private_file, "write_private_file", too_late)
    assert load_or_create_identity(tmp_path).public_key == sodium.public_key(SEED)
    assert entries(tmp_path) == ["identity.key"]


@pytest.mark.parametrize("failing", ["write", "fsync", "fchmod"])
def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, failing, refuse)
    with pytest.raises(KeyFileError, match=r"identity\.key.*No space left"):
        load_or_create_identity(tmp_path)
    assert entries(tmp_path) == []


def test_a_disk_that_fills_in_the_middle_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    calls = []

    def short_then_full(descriptor: int, data: bytes) -> int:
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, bytes(data)[:10])

    monkeypatch.setattr(os, "write", short_then_full)
    with pytest.raises(KeyFileError, match="No space left"):
        load_or_create_identity(tmp_path)
    assert calls == [32, 22]
    assert entries(tmp_path) == []


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:5]))
    write_private_file(tmp_path / "file", bytes(range(23)))
    assert (tmp_path / "file").read_bytes() == bytes(range(23))


def test_data_and_name_are_synced_before_the_call_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    real = os.fsync

    def record(descriptor: int) -> None:
        named = (tmp_path / "file").exists()
        synced.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), named))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    write_private_file(tmp_path / "file", b"x")
    assert synced == [(False, False), (True, True)]


# --- Token ------------------------------------------------------------------------------------


def test_a_token_is_made_once_and_read_by_a_client(tmp_path: Path) -> None:
    token = load_or_create_token(tmp_path)
    path = tmp_path / "api.token"
    assert len(token) == 43
    assert len(base64.urlsafe_b64decode(token + "=")) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_or_create_token(tmp_path) == token
    assert read_token(path) == read_token(str(path)) == token
    path.write_bytes(token.encode() + b"\n")
    assert read_token(path) == load_or_create_token(tmp_path) == token


@pytest.mark.parametrize(
    "content", [b"", b"a" * 42, b"a" * 44, b"a" * 42 + b"+", b"a" * 42 + b"\xff", b"\n" * 44]
)
def test_a_file_that_holds_no_token_is_refused_and_left_alone(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "api.token"
    write(path, content)
    for load in (lambda: load_or_create_token(tmp_path), lambda: read_token(path)):
        with pytest.raises(KeyFileError, match=r"holds no API token.*delete it"):
            load()
    assert path.read_bytes() == content


def test_a_token_that_others_can_read_refuses_the_daemon(tmp_path: Path) -> None:
    write(tmp_path / "api.token", b"a" * 43, 0o644)
    with pytest.raises(KeyFileError, match=r"mode 0644.*new token"):
        load_or_create_token(tmp_path)
    assert read_token(tmp_path / "api.token") == "a" * 43


def test_a_missing_token_file_tells_the_client_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="start shadowmesh-daemon"):
        read_token(tmp_path / "none")
    with pytest.raises(KeyFileError, match="cannot be read"):
        read_token(tmp_path)


def test_an_unreadable_token_file_is_a_matter_of_permission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(NotPermitted, match="--token-file"):
        read_token(tmp_path / "api.token")
