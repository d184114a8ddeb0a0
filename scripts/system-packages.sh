#!/usr/bin/env bash
# Make sure that the programs we call exist: system-packages.sh build|test|demo ...
#
# Looks for each program first. Only when one is missing, and only as root on Debian or Ubuntu,
# it installs the packages; anybody else is told the one line to run. Missing build tools end
# the run; missing test tools do not, because a test that lacks one skips and says so.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"
python=${PYTHON:-python3}
missing=()
optional=()
fatal=0

need() { # program package
    command -v "$1" >/dev/null || missing+=("$2")
}

want() { # program package: as need, where the distribution has such a package (Ubuntu has a snap)
    command -v "$1" >/dev/null || optional+=("$2")
}

available() { # those of the optional packages that apt knows
    local package
    for package in "${optional[@]}"; do
        [ -z "$(apt-cache search --names-only "^$package\$" 2>/dev/null)" ] || echo "$package"
    done
}

check_build() {
    need gcc gcc
    need make make
    need pkg-config pkg-config
    if ! command -v "$python" >/dev/null; then
        missing+=(python3 python3-venv python3-dev)
    else
        "$python" - <<'PY' || exit 1
import sys
if sys.version_info < (3, 11):
    sys.exit(f"python {sys.version.split()[0]} is too old: 3.11 or newer is needed (make PYTHON=...)")
PY
        "$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
        "$python" -c 'import os, sysconfig as s
os.stat(s.get_path("include") + "/Python.h")' 2>/dev/null || missing+=(python3-dev)
    fi
    # crypt.h and friends come with gcc's recommendation, not with gcc itself.
    [ -e /usr/include/stdlib.h ] || missing+=(libc6-dev)
    # At run time pysodium loads the shared library; -dev brings it and pkg-config's answer.
    # Not grep -q: it would end early, and ldconfig's broken pipe would count as "missing".
    /sbin/ldconfig -p 2>/dev/null | grep 'libsodium\.so\.' >/dev/null || missing+=(libsodium-dev)
    pkg-config --exists libssl 2>/dev/null || missing+=(libssl-dev)
    if [ ${#missing[@]} -gt 0 ]; then fatal=1; fi
}

check_demo() {
    need ip iproute2
    need iperf3 iperf3
}

check_test() {
    check_demo
    want chromium chromium
    need conntrack conntrack
    need curl curl
    need ethtool ethtool
    need haproxy haproxy
    need iptables iptables
    need nginx nginx-light
    need nft nftables
    need openssl openssl
    need ping iputils-ping
    need promtool prometheus
    need sysctl procps
    need systemd-analyze systemd
    need tcpdump tcpdump
    need turnserver coturn
}

for group in "$@"; do
    case $group in
        build | demo | test) "check_$group" ;;
        *) echo "usage: $0 build|demo|test ..." >&2; exit 2 ;;
    esac
done

if [ ${#missing[@]} = 0 ]; then
    mapfile -t missing < <(available)
    optional=()
fi
[ ${#missing[@]} -gt 0 ] || exit 0

if ! command -v apt-get >/dev/null; then
    echo "missing; please install what Debian calls: ${missing[*]}" >&2
    exit "$fatal"
fi
if [ "$(id -u)" != 0 ]; then
    echo "missing; please run: sudo apt-get install -y ${missing[*]}" >&2
    exit "$fatal"
fi

echo "installing with apt-get: ${missing[*]} ${optional[*]}"
# nginx, haproxy, coturn and prometheus are wanted as programs for tests. Nothing may start serving
# on this machine because somebody ran the tests: not now (policy-rc.d) and not at the next boot.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    trap 'rm -f $policy' EXIT
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
fi
export DEBIAN_FRONTEND=noninteractive
apt="apt-get -qq -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0"
log=$(mktemp)
install_all() {
    $apt update || return
    mapfile -t -O ${#missing[@]} missing < <(available)
    $apt install -y --no-install-recommends "${missing[@]}"
}
if ! install_all >"$log" 2>&1 </dev/null; then
    cat "$log" >&2
    rm -f "$log"
    exit 1
fi
rm -f "$log"
if command -v systemctl >/dev/null; then
    for service in nginx-light:nginx haproxy:haproxy coturn:coturn prometheus:prometheus; do
        case " ${missing[*]} " in
            *" ${service%%:*} "*) systemctl --quiet disable "${service##*:}" || true ;;
        esac
    done
fi
