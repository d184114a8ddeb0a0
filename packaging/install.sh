#!/usr/bin/env bash
# Install or uninstall ShadowMesh: packaging/install.sh install WHEEL|DIRECTORY | uninstall
#
# WHEEL is what packaging/wheel.sh makes; what it needs is fetched. DIRECTORY holds the package and all
# that it needs, unpacked (pip install --target), for a machine that has no network.
#
#   DESTDIR   in front of every path, for packages; nothing is started or asked of the system then
#   PREFIX    /usr/local; the Debian package has /usr
#   PYTHON3   interpreter that the programs run with: of the version that the wheel is for
#
#   PREFIX/bin              shadowmesh, shadowmesh-daemon
#   PREFIX/lib/shadowmesh   the package and all that it needs, for these two programs alone
#   PREFIX/lib              systemd units, sysusers.d, tmpfiles.d
#   PREFIX/share            manual pages, completions, the commented configuration
#   /etc/shadowmesh         daemon.yaml, if there is none
#   /etc/shadowmesh-relay   relay.yaml, if there is none
#
# Uninstalling leaves these two, /var/lib/shadowmesh, /var/lib/shadowmesh-relay and the users: they
# hold keys.
set -euo pipefail
cd "$(dirname "$0")/.."
umask 022
DESTDIR=${DESTDIR:-}
PREFIX=${PREFIX:-/usr/local}
py=${VENV:-.venv}/bin/python
case $PREFIX in /*) ;; *) echo "install: PREFIX=$PREFIX must be an absolute path" >&2; exit 2 ;; esac

bin=$PREFIX/bin
site=$PREFIX/lib/shadowmesh
units=$PREFIX/lib/systemd/system
sysusers=$PREFIX/lib/sysusers.d/shadowmesh.conf
tmpfiles=$PREFIX/lib/tmpfiles.d/shadowmesh.conf
man=$PREFIX/share/man
bash_completion=$PREFIX/share/bash-completion/completions/shadowmesh
zsh_completion=$PREFIX/share/zsh/vendor-completions/_shadowmesh
fish_completion=$PREFIX/share/fish/vendor_completions.d/shadowmesh.fish
doc=$PREFIX/share/doc/shadowmesh
config=/etc/shadowmesh/daemon.yaml
relay_config=/etc/shadowmesh-relay/relay.yaml

# Of what is installed the running system may need to hear; of a package being made it must not.
live() { [ -z "$DESTDIR" ] && [ "$(id -u)" = 0 ]; }
systemd_runs() { live && [ -d /run/systemd/system ]; }

interpreter() {
    local version
    version=$("$py" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    for one in "${PYTHON3:-}" "/usr/bin/python3" "/usr/bin/python$version" \
        "$("$py" -c 'import sys; print(sys._base_executable)')"; do
        if [ -n "$one" ] && [ "$("$one" -c 'import sys; print("%d.%d" % sys.version_info[:2])' \
            2>/dev/null)" = "$version" ]; then
            echo "$one"
            return
        fi
    done
    echo "install: no Python $version to run with; name one with PYTHON3=" >&2
    exit 1
}

put() { # mode target; the content comes from standard input
    install -D -m "$1" /dev/stdin "$DESTDIR$2"
}

program() { # name module: no site-packages or environment gets in, no stray .pyc comes out
    put 755 "$bin/$1" <<PROGRAM
#!$python3 -IBS
import sys
sys.path.insert(0, "$site")
from $2 import main
main()
PROGRAM
}

do_install() {
    local wheel=$1 python3 unit new=$DESTDIR$site.new
    python3=$(interpreter)
    rm -rf "$new"
    mkdir -p "$new"
    if [ -d "$wheel" ]; then
        cp -rL "$wheel/." "$new"
    else
        echo "install: fetching the Python packages that the programs need" >&2
        "$py" -m pip --disable-pip-version-check --quiet install --no-compile --no-warn-conflicts \
            --root-user-action ignore --constraint constraints.txt --target "$new" "$wheel"
    fi
    # Programs of our dependencies, and their tests and sources, are nobody's business here.
    rm -rf "$new/bin" "$new"/{gevent,greenlet,psutil,zope/interface}/tests "$new/gevent/testing"
    find "$new" \( -name '*.pyx' -o -name '*.pxd' -o -name '*.c' -o -name '*.h' \) -delete
    # Where on the machine of the builder the wheel lay.
    find "$new" -path '*/shadowmesh-*.dist-info/direct_url.json' -delete
    find "$new" -path '*/shadowmesh-*.dist-info/RECORD' -exec sed -i '\|/direct_url\.json,|d' {} +
    find "$new" -type d -empty -delete
    echo "install: putting everything into place" >&2
    # With the paths that the files will have, which stand in tracebacks, and whatever their times.
    "$python3" -m compileall -q -j 0 --invalidation-mode unchecked-hash -s "$new" -p "$site" "$new"
    # Only now: a daemon that runs may load modules late, and a failure above leaves the old ones.
    do_remove
    mv "$new" "$DESTDIR$site"
    program shadowmesh shadowmesh.cli
    program shadowmesh-daemon shadowmesh.service.start
    for unit in shadowmesh.service shadowmesh-relay.service; do
        sed "s|/usr/local/bin/|$bin/|" "init/$unit" | put 644 "$units/$unit"
    done
    put 644 "$sysusers" <init/shadowmesh.sysusers
    put 644 "$tmpfiles" <init/shadowmesh.tmpfiles
    "$py" scripts/manpages.py build/man
    for page in build/man/*; do
        gzip -9 -n <"$page" | put 644 "$man/man${page##*.}/${page##*/}.gz"
    done
    "$py" -m shadowmesh.cli completion bash | put 644 "$bash_completion"
    "$py" -m shadowmesh.cli completion zsh | put 644 "$zsh_completion"
    "$py" -m shadowmesh.cli completion fish | put 644 "$fish_completion"
    put 644 "$doc/daemon.yaml" <conf/daemon.yaml
    put 644 "$doc/relay.yaml" <conf/relay.yaml
    put 644 "$doc/copyright" <LICENSE
    put 644 "$doc/CHANGELOG.md" <CHANGELOG.md
    if live; then prepare_system; fi
    if [ ! -e "$DESTDIR$config" ]; then
        put 640 "$config" <conf/daemon.yaml
        if live && getent group shadowmesh >/dev/null; then chgrp shadowmesh "$config"; fi
    fi
    if [ ! -e "$DESTDIR$relay_config" ]; then put 644 "$relay_config" <conf/relay.yaml; fi
    if live; then say_what_is_next; fi
}

prepare_system() {
    if command -v systemd-sysusers >/dev/null; then systemd-sysusers "$sysusers"; fi
    if getent group shadowmesh >/dev/null && command -v systemd-tmpfiles >/dev/null; then
        systemd-tmpfiles --create "$tmpfiles"
    fi
    if systemd_runs; then systemctl daemon-reload; fi
}

say_what_is_next() { # as the first step of the README goes on
    if ! systemd_runs; then
        echo "installed; edit $config, then start $bin/shadowmesh-daemon"
    elif systemctl is-active --quiet shadowmesh; then
        echo "installed; the old version runs until: systemctl restart shadowmesh"
    else
        echo "installed; next: systemctl enable --now shadowmesh"
    fi
}

do_remove() {
    rm -rf "$DESTDIR$site" "$DESTDIR$doc"
    rm -f "$DESTDIR$bin/shadowmesh" "$DESTDIR$bin/shadowmesh-daemon" \
        "$DESTDIR$units/shadowmesh.service" "$DESTDIR$units/shadowmesh-relay.service" \
        "$DESTDIR$sysusers" "$DESTDIR$tmpfiles" "$DESTDIR$bash_completion" \
        "$DESTDIR$zsh_completion" "$DESTDIR$fish_completion" \
        "$DESTDIR$man"/man1/shadowmesh{,-*}.1.gz "$DESTDIR$man"/man8/shadowmesh-daemon.8.gz \
        "$DESTDIR$man"/man5/shadowmesh.yaml.5.gz
}

case "${1:-} $#" in
    "install 2") do_install "$2" ;;
    "uninstall 1")
        if systemd_runs; then
            systemctl --quiet disable --now shadowmesh shadowmesh-relay 2>/dev/null || true
        fi
        do_remove
        if systemd_runs; then systemctl daemon-reload; fi
        if live; then
            echo "left: /etc/shadowmesh, /var/lib/shadowmesh, the same of shadowmesh-relay, both users" \
                "and the groups"
        fi
        ;;
    *) echo "usage: $0 install WHEEL|DIRECTORY | uninstall" >&2; exit 2 ;;
esac
