"""Files that hold a secret: written whole or not at all, read only when they are private.

Owns: mode, owner and kind of such a file, that it survives a power cut, that two daemons starting
at once end with the same one, and that what root makes can be read by whom it is for. Does not
know: what is in it.

A private file is a regular file of root or of the daemon's user. Others have no right to it, its
group none to change it. Its group may read it where it is root's: so certbot's keys (root:ssl-cert
0640) and what is in /etc/shadowmesh (root:shadowmesh 0640) get to a service that is not root. A
file of the daemon's own user is for that user alone, 0600. Root takes what belongs to the owner of
the directory for its own: root is then where another user's daemon is at home.

Anything else refuses the start; a file that exists is never made anew or overwritten, unless the
caller of `write_private_file` asks for that. Source: protocol section 10; the rule of the key file
of PostgreSQL's server.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import stat
from typing import TYPE_CHECKING, Final

from shadowmesh.base.errors import KeyFileError
from shadowmesh.keys import sodium

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: more than any identity or token, so that a wrong file is never read whole
_READ_LIMIT: Final = 128
_ROOT: Final = 0


def hands_on_its_group(directory: Path, group: int) -> bool:
    """Tell whether a file of that group in a directory is meant for the group to read.

    It is where the directory hands its own group to new files (setgid): so the package makes
    /etc/shadowmesh, with the group of the service.
    """
    try:
        status = directory.stat()
    except OSError:
        return False
    return bool(status.st_mode & stat.S_ISGID) and status.st_gid == group != 0


def write_private_file(path: Path, data: bytes, *, replace: bool = False) -> None:
    """Write a new file for its owner alone, whole or not at all, and safe against a power cut.

    The data goes to a temporary name in the same directory, to the disk, and then gets its name.
    Without replace a file (or link) that has the name already stays as it is. What root makes in a
    directory of another user is that user's (0600), in one that hands on its group (setgid) for
    that group to read (0640); else whoever shares the directory could not read it.

    Raises:
        FileExistsError: the name is taken and replace is false.
        KeyFileError: the directory or the file cannot be written, a full disk included; the
            temporary file is gone.
    Source: protocol section 10.
    """
    temporary = path.parent / f".{path.name}.{sodium.random_bytes(8).hex()}.tmp"
    try:
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        try:
            try:
                # The umask may have taken bits away; it can never add one.
                os.fchmod(descriptor, 0o600)
                if os.geteuid() == _ROOT:
                    _hand_over(descriptor, path.parent)
                _write_all(descriptor, data)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if replace:
                temporary.replace(path)
            else:
                # A rename that cannot overwrite: two daemons starting at once must not end with
                # one of them using an identity that is no longer on the disk.
                path.hardlink_to(temporary)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
        _sync_directory(path.parent)
    except FileExistsError:
        raise
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be written: {error.strerror}") from None


def _hand_over(descriptor: int, directory: Path) -> None:
    """Give a file that root makes to whom the directory is for."""
    status = directory.stat()
    if status.st_uid != _ROOT:
        # Without CAP_CHOWN, as in some containers, root is all the users that there are.
        with contextlib.suppress(PermissionError):
            os.fchown(descriptor, status.st_uid, status.st_gid)
    elif hands_on_its_group(directory, os.fstat(descriptor).st_gid):
        os.fchmod(descriptor, 0o640)


def read_or_create(path: Path, make: Callable[[], bytes], remedy: str) -> bytes:
    """Return the content (cut at 128 bytes) of a private file, which is made when the name is free.

    Args: remedy: what to do about a file that is no good; it goes into the errors.
    """
    content = _read_if_there(path, remedy)
    if content is None:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise KeyFileError(
                f"{path.parent}: cannot be made: {error.strerror}; set daemon.state_dir to a"
                " directory of yours"
            ) from None
        with contextlib.suppress(FileExistsError):  # another daemon was quicker: use its file
            write_private_file(path, make())
        content = _read_if_there(path, remedy)
    if content is None:
        raise KeyFileError(f"{path}: vanished while it was made; start again")
    return content


def _read_if_there(path: Path, remedy: str) -> bytes | None:
    try:
        descriptor = open_private_file(path, remedy)
    except FileNotFoundError:
        return None
    try:
        return read_bounded(descriptor)
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be read: {error.strerror}; {remedy}") from None


def read_bounded(descriptor: int) -> bytes:
    """Return at most 128 bytes of a file and close it."""
    try:
        return os.read(descriptor, _READ_LIMIT)
    finally:
        os.close(descriptor)


def open_private_file(path: Path, remedy: str, *, follow: bool = False) -> int:
    """Return a descriptor that reads a private file.

    Args:
        remedy: what to do about a file that is no good; it goes into the errors.
        follow: take what a final symbolic link leads to, as certbot has them; else it is refused.
    Raises:
        FileNotFoundError: the name is free.
        KeyFileError: a symbolic link, not a regular file, another owner, another mode, or it
            cannot be opened.
    """
    # O_NONBLOCK: opening a FIFO must not wait for its writer.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise KeyFileError(
                f"{path}: is a symbolic link; put the file itself there, or {remedy}"
            ) from None
        raise KeyFileError(f"{path}: {why_not_opened(path, error)}") from None
    problem = _problem(path, os.fstat(descriptor), remedy)
    if problem is not None:
        os.close(descriptor)
        raise KeyFileError(f"{path}: {problem}")
    return descriptor


def _problem(path: Path, status: os.stat_result, remedy: str) -> str | None:
    """Say why a file is not private, and what to do; None when it is."""
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISREG(status.st_mode):
        return f"is not a regular file; {remedy}"
    if status.st_uid not in _trusted_owners(path.parent):
        owner, user = user_name(status.st_uid), user_name(os.geteuid())
        cause = f"belongs to user {owner}, and the daemon runs as {user}"
        if os.geteuid() == _ROOT:
            # Whoever it belongs to needs it: root must not take it away.
            return f"{cause}; run the daemon as {owner}, or name a file of its own"
        return f"{cause}; check where it comes from, then `chown {user} {path}`"
    if mode & ~(0o640 if status.st_uid == _ROOT else 0o600):
        return (
            f"has mode {mode:04o}, so others may have read it; if nobody did,"
            f" `{closing_command(path, status)}`, else {remedy}"
        )
    return None


def closing_command(path: Path, status: os.stat_result) -> str:
    """Return the command that closes a file to others and leaves it to this process."""
    if status.st_uid != _ROOT:
        return f"chmod 600 {path}"
    if os.geteuid() != _ROOT and status.st_gid not in (os.getegid(), *os.getgroups()):
        return f"chgrp {group_name(os.getegid())} {path} && chmod 640 {path}"
    # Root needs no group; another program may.
    shared = status.st_gid != _ROOT and status.st_mode & stat.S_IRGRP
    return f"chmod {640 if shared else 600} {path}"


def _trusted_owners(directory: Path) -> set[int]:
    owners = {_ROOT, os.geteuid()}
    if os.geteuid() == _ROOT:
        owners.add(directory.stat().st_uid)
    return owners


def why_not_opened(path: Path, error: OSError) -> str:
    """Say why the daemon cannot open a file, and what gives it the right and takes none away."""
    problem = f"cannot be opened: {error.strerror}"
    if not isinstance(error, PermissionError):
        return f"{problem}; see `ls -l {path}`"
    user = user_name(os.geteuid())
    try:
        status = path.stat()
    except OSError:
        return f"{problem}; {user} may not enter a directory on the way, see `namei -l {path}`"
    owner, group = user_name(status.st_uid), group_name(status.st_gid)
    mode = stat.S_IMODE(status.st_mode)
    cause = f"belongs to {owner}:{group} with mode {mode:04o}, and the daemon runs as {user}"
    if status.st_mode & stat.S_IRGRP and status.st_gid != _ROOT:
        return (
            f"{cause}; let the service into that group: SupplementaryGroups={group} by"
            " `systemctl edit shadowmesh`"
        )
    if status.st_uid == _ROOT:
        ours = group_name(os.getegid())
        return f"{cause}; `chgrp {ours} {path} && chmod 640 {path}` lets it read the file"
    return f"{cause}; run the daemon as {owner}, or name a file of its own"


def user_name(uid: int) -> str:
    """Return the name of a user, or its number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_name(gid: int) -> str:
    """Return the name of a group, or its number where it has none."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _sync_directory(directory: Path) -> None:
    """Make a new name in directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
