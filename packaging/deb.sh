#!/usr/bin/env bash
# Build dist/shadowmesh_VERSION+pyXY_ARCH.deb from a wheel: packaging/deb.sh WHEEL
#
# The package is for the Python that VENV= has (.venv), and depends on it: 3.11 is Debian 12, 3.12
# Ubuntu 24.04, 3.13 Debian 13. All three install what is built on Debian 12, which has the oldest libc.
#
# All Python packages that Debian 12 has too old, or not at all, are inside (PREFIX/lib/shadowmesh);
# so is libsodium. OpenSSL 3 is the distribution's, as it is for its Python; all but Debian 12 call it
# libssl3t64. The same sources, wheel and SOURCE_DATE_EPOCH give the same content.
set -euo pipefail
cd "$(dirname "$0")/.."
umask 022
py=${VENV:-.venv}/bin/python
[ $# = 1 ] || { echo "usage: $0 WHEEL" >&2; exit 2; }
for tool in dpkg-deb gzip strip; do
    command -v "$tool" >/dev/null || { echo "deb: $tool is not installed" >&2; exit 1; }
done

python=$("$py" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
# A system that moves on to the next Python takes the package for that as the newer one.
version=$("$py" -c 'import shadowmesh; print(shadowmesh.__version__)')-1+py${python/./}
arch=$(dpkg --print-architecture)
maintainer="${DEBFULLNAME:-The ShadowMesh authors} <${DEBEMAIL:-shadowmesh@localhost}>"
next=$("$py" -c 'import sys; print("%d.%d" % (sys.version_info[0], sys.version_info[1] + 1))')
libc=$(dpkg-query -W -f '${Version}' libc6 | cut -d- -f1)
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH

root=build/deb
rm -rf "$root"
mkdir -p "$root/DEBIAN"
env DESTDIR="$PWD/$root" PREFIX=/usr PYTHON3="${PYTHON3:-}" packaging/install.sh install "$1"
# Whatever interpreter has built it, the package runs with Debian's.
sed -i '1s|^#!.*|#!/usr/bin/python3 -IBS|' "$root"/usr/bin/shadowmesh "$root"/usr/bin/shadowmesh-daemon
# As debhelper does it: what the compiler makes has debugging information.
find "$root" -name '*.so*' -type f -exec strip --strip-unneeded {} +

doc=$root/usr/share/doc/shadowmesh
gzip -9 -n <"$doc/CHANGELOG.md" >"$doc/changelog.gz"
rm "$doc/CHANGELOG.md"
gzip -9 -n >"$doc/changelog.Debian.gz" <<CHANGELOG
shadowmesh ($version) unstable; urgency=medium

  * For Python $python; what is new stands in changelog.gz.

 -- $maintainer  $(date -uR -d "@$SOURCE_DATE_EPOCH")
CHANGELOG

install -D -m 644 packaging/debian/lintian-overrides "$root/usr/share/lintian/overrides/shadowmesh"
cp packaging/debian/{postinst,prerm,postrm} "$root/DEBIAN/"
chmod 755 "$root"/DEBIAN/*
printf '%s\n' /etc/shadowmesh/daemon.yaml /etc/shadowmesh-relay/relay.yaml >"$root/DEBIAN/conffiles"
(cd "$root" && find usr -type f -print0 | sort -z | xargs -0 md5sum >DEBIAN/md5sums)
cat >"$root/DEBIAN/control" <<CONTROL
Package: shadowmesh
Version: $version
Architecture: $arch
Maintainer: $maintainer
Installed-Size: $(du -sk --exclude=DEBIAN "$root" | cut -f1)
Depends: python3 (>= $python~), python3 (<< $next), libc6 (>= $libc), libssl3t64 | libssl3, systemd | systemd-standalone-sysusers, systemd | systemd-standalone-tmpfiles
Section: net
Priority: optional
Description: encrypted layer-2 tunnel between two machines
 ShadowMesh joins two Linux machines by a virtual Ethernet cable. The keys
 come from a handshake with X25519, ML-KEM-768 and an optional pre-shared
 key; frames travel over UDP where a path through the NATs is found, and over
 a WebSocket where it is not.
CONTROL

mkdir -p dist
deb=dist/shadowmesh_${version}_$arch.deb
find "$root" -newermt "@$SOURCE_DATE_EPOCH" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
dpkg-deb --root-owner-group -Zxz --build "$root" "$deb" >/dev/null
echo "$deb"
