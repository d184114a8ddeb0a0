"""What leaves the issuer in files and comes back: the authority's key, and all of the network.

Owns: that nothing leaves before it is known to be kept, and what a machine is that comes back from a
backup. Does not know: the form of a backup (`backup`), who is asked for passphrases, where the files
lie. Source: mesh section 3, mesh-rules C2, C4.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from shadowmesh.base.errors import IssuerRefused, KeyFileError
from shadowmesh.network import ledger, pem
from shadowmesh.network.authority import AuthorityKey, load_authority
from shadowmesh.network.certificate import Authority
from shadowmesh.network.ledger import Ledger
from shadowmesh.network.membership import Membership
from shadowmesh.network.store import Store


def exported(key: AuthorityKey, passphrase: str) -> str:
    """Return the key of an authority under a passphrase, and its certificate, as PEM.

    Raises:
        IssuerRefused: the passphrase is too short.
    """
    return key.pem(passphrase).decode() + pem.armor(pem.CERTIFICATE, key.authority.der)


def release(
    store: Store, key: AuthorityKey, name: str, kept: bytes, passphrase: str, local: datetime
) -> None:
    """Remove the authority's key from this machine, where a revoker stays.

    It counts when this machine begins anew.

    Args:
        name: of the network.
        kept: what `exported` returned, read back from where it is kept.
    Raises:
        IssuerRefused: that does not open, or is another key. The key is still here then.
    """
    _opened(kept, passphrase, key.authority)
    # The one of an earlier release, if there is one: members follow few keys that sign lists.
    revoker = store.revoker(key.authority) or key.make_revoker(name, local.replace(microsecond=0))
    store.export_authority(revoker)


def bring_back(store: Store, authority: Authority, kept: bytes, passphrase: str) -> None:
    """Write the authority's key to this machine; it counts when this machine begins anew.

    Raises:
        IssuerRefused: it does not open, or is the key of another authority.
    """
    store.save_authority(_opened(kept, passphrase, authority))


def _opened(kept: bytes, passphrase: str, authority: Authority) -> AuthorityKey:
    found = pem.find(kept, *pem.PRIVATE_KEYS)
    if found is None:
        raise IssuerRefused("there is no private key in this file", "key")
    return load_authority(found.encode(), authority.der, passphrase)


def restore(store: Store, files: Mapping[str, bytes], local: datetime) -> tuple[Membership, int]:
    """Be the machine that a backup was made of; return also how many invitations are void now.

    Our certificate comes last: a restore that was killed is repeated. Lists, and what was decided
    after the backup, come from the other members (`Registrar.look`). Source: mesh-rules C2.

    Raises:
        IssuerRefused: this machine is in a network, or the backup is of no member.
        KeyFileError: the disk, or a file in the backup is wrong. This machine is in no network then.
    """
    own = files.get("member.crt")
    if own is None or "member.key" not in files:
        raise IssuerRefused("this backup is of no member of a network", "backup")
    store.restore({name: data for name, data in files.items() if name != "member.crt"})
    try:
        book = Ledger(store.path / ledger.FILE)
        try:
            cancelled = book.cancel(None, local)
            store.save_members(book.current(one.public_key) for one in book.members())
        finally:
            book.close()
        store.save_certificate(own)
        membership = Membership.load(store, local)
        assert membership is not None
    except KeyFileError:
        store.leave()
        raise
    return membership, cancelled
