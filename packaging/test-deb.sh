#!/usr/bin/env bash
# Install, run, upgrade, remove and purge the Debian package in a Debian of its own:
#
#     packaging/test-deb.sh dist/shadowmesh_VERSION_ARCH.deb
#
# The Debian is the one with the Python of the package: 12 for +py311, 13 for +py313 (SUITE=
# for another).
#
# By hand, as root on Debian, a minute or two, the first time more: it needs debootstrap, and takes
# the packages from where apt gets those of this machine (MIRROR= for another place). A root below
# build/test-deb is booted with its real systemd in new namespaces, which end with it: the unit's
# user, sandbox, readiness, reload and watchdog are the real ones.
set -euo pipefail
cd "$(dirname "$0")/.."
case ${1:-} in *+py313*) SUITE=${SUITE:-trixie} ;; *) SUITE=${SUITE:-bookworm} ;; esac
export SUITE
work=$PWD/build/test-deb
root=$work/root

inside_root() { # runs in the new namespaces, as their first process
    mount --make-rprivate /
    mount --bind "$root" "$root"
    mount -t proc proc "$root/proc"
    mount -t tmpfs tmpfs "$root/run"
    mount -t tmpfs tmpfs "$root/dev"
    mkdir -p "$root"/dev/{net,pts,shm}
    local name
    for name in null zero full random urandom tty; do
        touch "$root/dev/$name"
        mount --bind "/dev/$name" "$root/dev/$name"
    done
    mknod -m 666 "$root/dev/net/tun" c 10 200
    mount -t devpts devpts "$root/dev/pts"
    ln -s pts/ptmx "$root/dev/ptmx" # PrivateDevices= wants it
    mount -t sysfs -o ro sysfs "$root/sys"
    # The hybrid hierarchy also works where the machine's own is not the unified one.
    mount -t tmpfs tmpfs "$root/sys/fs/cgroup"
    mkdir "$root"/sys/fs/cgroup/{unified,systemd}
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup/unified"
    mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/systemd"
    exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        chroot "$root" /lib/systemd/systemd --log-target=null
}

if [ "${1:-}" = --inside ]; then inside_root; fi

control_groups() { # for the systemd inside to make its groups in: one in each hierarchy of its kinds
    local tree
    for tree in /sys/fs/cgroup{,/unified,/systemd}; do
        if [ -e "$tree/cgroup.procs" ]; then echo "$tree/test-deb-$$"; fi
    done
}

boot() { # in the background; the first process inside is the only child of this one
    local group groups
    groups=$(control_groups)
    for group in $groups; do mkdir "$group"; done
    (
        # Nothing here forks: a child of this one would be taken for the first process inside.
        for group in $groups; do echo "$BASHPID" >"$group/cgroup.procs"; done
        exec unshare --fork --pid --mount --uts --ipc --net --cgroup "$0" --inside
    ) >"$work/boot.log" 2>&1 &
}
[ $# = 1 ] || { echo "usage: $0 PACKAGE.deb" >&2; exit 2; }
[ "$(id -u)" = 0 ] || { echo "test-deb: must be root" >&2; exit 4; }
deb=$(realpath "$1")

booted=
finish() {
    local code=$?
    if [ -n "$booted" ]; then
        if [ $code != 0 ]; then
            echo "test-deb: failed; units that did, and the end of the journal:" >&2
            run systemctl list-units --failed --no-legend --plain >&2 || true
            run journalctl --no-pager -u shadowmesh -u shadowmesh-relay -n 30 -o cat >&2 || true
        fi
        # The first process of a pid namespace: all others end with it.
        kill -KILL "$booted" 2>/dev/null || true
        wait 2>/dev/null || true
    fi
    for group in $(control_groups); do
        if [ -d "$group" ]; then find "$group" -depth -type d -exec rmdir {} \;; fi
    done
    rm -rf --one-file-system "$root"
}
trap finish EXIT

run() { # in the booted root
    nsenter -t "$booted" --all --root="/proc/$booted/root" --wd="/proc/$booted/root" \
        env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive TERM=dumb "$@"
}

step() { echo "--- $*"; }

expect() { # text command...: the command's output is exactly this
    local wanted=$1 got
    shift
    got=$("$@" 2>&1) || true
    if [ "$got" != "$wanted" ]; then
        echo "test-deb: $* gave '$got' instead of '$wanted'" >&2
        exit 1
    fi
}

await() { # text command...: within 30 s
    local wanted=$1 _
    shift
    for _ in $(seq 150); do
        [ "$("$@" 2>/dev/null)" != "$wanted" ] || return 0
        sleep 0.2
    done
    expect "$wanted" "$@"
}

property() { run systemctl show --property "$1" --value shadowmesh; }

readme_step() { # number: what the walk-through types on the left machine in that step
    awk -v step="**$1. " '
        substr($0, 1, 2) == "**" { inside = index($0, step) == 1 }
        /^```/ { typed = inside && ($2 == "both" || $2 == "left") && $1 == "```sh"; next }
        typed
    ' docs/pair.md
}

mirror() { # where apt gets a Debian from; the suites lie side by side
    apt-get indextargets --format '$(REPO_URI)' \
        'Created-By: Packages' 'Origin: Debian' 'Component: main' | head -n 1
}

mkdir -p "$work"
if [ ! -e "$work/base-$SUITE.tar" ]; then
    MIRROR=${MIRROR:-$(mirror)}
    [ -n "$MIRROR" ] || { echo "test-deb: apt knows no mirror of $SUITE; name one: MIRROR=" >&2; exit 1; }
    step "debootstrap (kept in $work/base-$SUITE.tar)"
    rm -rf --one-file-system "$root"
    debootstrap --variant=minbase --include=systemd,systemd-sysv,iproute2,python3 "$SUITE" "$root" "$MIRROR" \
        >"$work/debootstrap.log" 2>&1 || { tail "$work/debootstrap.log" >&2; exit 1; }
    tar -C "$root" --one-file-system -cf "$work/base-$SUITE.tar.new" .
    mv "$work/base-$SUITE.tar.new" "$work/base-$SUITE.tar"
fi
rm -rf --one-file-system "$root"
mkdir "$root"
tar -C "$root" -xf "$work/base-$SUITE.tar"
cp "$deb" "$root/root/package.deb"
# The kernel is the machine's: nothing in here may load modules into it, and from systemd 257 on
# (trixie) the attempt fails.
ln -s /dev/null "$root/etc/systemd/system/systemd-modules-load.service"

step "boot"
boot
for _ in $(seq 50); do
    booted=$(pgrep -P $! || true)
    [ -z "$booted" ] || break
    sleep 0.1
done
await running run systemctl is-system-running

step "without a libsodium of the system"
expect 0 run sh -c 'ldconfig -p | grep -c sodium'

step "install: it starts, as its own user, and says that it is ready"
run dpkg -i /root/package.deb >/dev/null
expect active run systemctl is-active shadowmesh
expect enabled run systemctl is-enabled shadowmesh
expect "not connected" property StatusText
expect shadowmesh run sh -c "stat -c %U /proc/$(property MainPID)/cmdline /proc/$(property MainPID) \
    | sort -u | grep -v root"
expect "root:shadowmesh 640" run stat -c '%U:%G %a' /etc/shadowmesh/daemon.yaml
expect "root:shadowmesh 2750" run stat -c '%U:%G %a' /etc/shadowmesh
expect "api.token cert.pem identity.key key.pem" run sh -c 'echo $(ls /var/lib/shadowmesh)'
run shadowmesh wait --for running >/dev/null
run shadowmesh version

step "two rights, by groups: who is in none may do nothing, and hears how to get in"
expect "shadowmesh:shadowmesh 755" run stat -c '%U:%G %a' /run/shadowmesh
expect "shadowmesh:shadowmesh 666" run stat -c '%U:%G %a' /run/shadowmesh/api.sock
as() { # group command...: as another user, who is in this group or, when it is empty, in none
    local groups=--clear-groups
    if [ -n "$1" ]; then groups=--groups=$(run getent group "$1" | cut -d: -f3); fi
    shift
    run setpriv --reuid=65534 --regid=65534 "$groups" "$@"
}
way_in() { # group wanted command...: how often the refusal names the way into the wanted group
    local group=$1 wanted=$2
    shift 2
    as "$group" "$@" 2>&1 | grep -c "usermod -aG $wanted " || true
}
expect "" run sh -c 'getent group shadowmesh-view shadowmesh-admin | cut -d: -f4 | tr -d "\n"'
expect 1 way_in "" shadowmesh-view shadowmesh status
expect 1 way_in shadowmesh-view shadowmesh-admin shadowmesh connect
expect disconnected as shadowmesh-view shadowmesh wait --for disconnected
expect disconnected as shadowmesh-admin shadowmesh wait --for disconnected
run shadowmesh bench --quick >/dev/null
expect "" run find /usr/lib/shadowmesh -path '*/fast/hooks*'

step "docs/pair.md goes on from here, on its left machine"
key=$(run sh -ec "$(readme_step 2)")
[ ${#key} = 44 ] || { echo "test-deb: step 2 printed '$key'" >&2; exit 1; }
other=$(run sh -c 'shadowmesh genkey | shadowmesh pubkey')
typed=$(readme_step 3)
run sh -ec "${typed//KEY_OF_RIGHT/$other}" >/dev/null
run sh -ec "$(readme_step 5)"
expect active run systemctl is-active shadowmesh
expect 1 run sh -c "ss -Hltn 'sport = :9001' | wc -l"
expect "root:shadowmesh 640" run stat -c '%U:%G %a' /etc/shadowmesh/daemon.yaml
expect "$key" run sh -c 'shadowmesh pubkey </var/lib/shadowmesh/identity.key'
run cp -a /usr/share/doc/shadowmesh/daemon.yaml /root/example.yaml
run sh -c 'cat /root/example.yaml >/etc/shadowmesh/daemon.yaml'

step "reload: a wrong file changes nothing, a right one is applied"
run sh -c 'cp -a /etc/shadowmesh/daemon.yaml /root/daemon.yaml
    echo "nonsense: 1" >>/etc/shadowmesh/daemon.yaml
    if systemctl reload shadowmesh 2>/dev/null; then exit 1; fi
    psk=$(shadowmesh genpsk)
    sed "s/^  #key: .*/  key: \"$psk\"/" /root/daemon.yaml >/etc/shadowmesh/daemon.yaml'
pid=$(property MainPID)
run systemctl reload shadowmesh
expect "$pid" property MainPID

step "the sandbox lets it make its device"
run sh -c 'sed -i "s/^  address: .*/  address: \"127.0.0.1:1\"/" /etc/shadowmesh/daemon.yaml
    systemctl restart shadowmesh'
await tap0 run sh -c 'ls /sys/class/net | grep tap0'

step "real-time priority: off by itself, given when it is wanted, taken back by LimitRTTIME"
policies() { # of the threads that carry frames, each one once
    run sh -c 'for task in /proc/$(systemctl show --property MainPID --value shadowmesh)/task/*; do
        case $(cat "$task/comm") in sm-*) awk "{ print \$41 }" "$task/stat" ;; esac
    done | sort -u'
}
drop_in() { # directive...: beside the unit, from its next start on
    run sh -c 'directory=/run/systemd/system/shadowmesh.service.d
        mkdir -p $directory
        printf "[Service]\n" >$directory/test.conf
        for line; do echo "$line" >>$directory/test.conf; done
        systemctl daemon-reload' sh "$@"
}
await 0 policies
# Where root itself may not raise the limit (in a container) the capability stands in for it.
prlimit --rtprio=1:1 true 2>/dev/null \
    || drop_in CapabilityBoundingSet=CAP_SYS_NICE AmbientCapabilities=CAP_SYS_NICE
run sh -c 'sed -i "s/^  realtime: .*/  realtime: true/" /etc/shadowmesh/daemon.yaml
    systemctl restart shadowmesh'
await 2 policies # SCHED_RR
expect 1 run sh -c 'shadowmesh status | grep -c ", real-time priority"'
run systemctl kill --kill-whom=main --signal=XCPU shadowmesh
await 0 policies
expect 1 run sh -c 'shadowmesh status | grep -c "no real-time priority: given up"'
drop_in LimitRTPRIO=0
run systemctl restart shadowmesh
await 1 run sh -c 'shadowmesh status | grep -c "no real-time priority: not permitted"'
expect 0 policies
run sh -c 'sed -i "s/^  realtime: .*/  realtime: false/" /etc/shadowmesh/daemon.yaml'

step "the relay is off until it is wanted, and runs beside the other one with nothing of it"
relay() { run shadowmesh --config /etc/shadowmesh-relay/relay.yaml "$@"; }
expect inactive run systemctl is-active shadowmesh-relay
expect disabled run systemctl is-enabled shadowmesh-relay
expect "root:root 755" run stat -c '%U:%G %a' /etc/shadowmesh-relay
expect "root:root 644" run stat -c '%U:%G %a' /etc/shadowmesh-relay/relay.yaml
run sh -c 'printf "peers:\n  - name: laptop\n    public_key: %s\n" "$1" >>/etc/shadowmesh-relay/relay.yaml' sh "$other"
run systemctl start shadowmesh-relay
expect active run systemctl is-active shadowmesh-relay
await active run systemctl is-active shadowmesh
expect "api.token cert.pem identity.key key.pem" run sh -c 'echo $(ls /var/lib/shadowmesh-relay)'
# CAP_NET_BIND_SERVICE is number 10.
expect 0000000000000400 run sh -c 'awk "/^CapBnd/ { print \$2 }" \
    /proc/$(systemctl show --property MainPID --value shadowmesh-relay)/status'
expect "443 9190 9191" run sh -c 'echo $(ss -Hltn | awk "{ print \$4 }" | sed "s/.*://" \
    | grep -x -e 443 -e 9190 -e 9191 | sort -n)'
expect 1 run sh -c "shadowmesh --config /etc/shadowmesh-relay/relay.yaml --json status \
    | grep -c 'none is wanted: network.tap_device is empty'"
relay logs >/dev/null
run systemctl reload shadowmesh-relay

step "a daemon that hangs is restarted, and systemd holds its device meanwhile"
index=$(run cat /sys/class/net/tap0/ifindex)
drop_in WatchdogSec=3s RestartSec=1s
run sh -c 'systemctl restart shadowmesh
    kill -STOP "$(systemctl show --property MainPID --value shadowmesh)"'
await 1 property NRestarts
await active run systemctl is-active shadowmesh
expect 1 run sh -c 'journalctl -u shadowmesh -o cat | grep -c "Fatal Python error: Aborted"'
expect "$index" run cat /sys/class/net/tap0/ifindex

step "upgrade: configuration and keys stay"
key=$(run shadowmesh --json status | grep '"public_key"' | head -1 || true)
run dpkg -i /root/package.deb >/dev/null
await active run systemctl is-active shadowmesh
expect "$key" sh -c "$(declare -f run); booted=$booted; run shadowmesh --json status \
    | grep '\"public_key\"' | head -1"
expect "root:shadowmesh 640" run stat -c '%U:%G %a' /etc/shadowmesh/daemon.yaml
await active run systemctl is-active shadowmesh-relay
expect disabled run systemctl is-enabled shadowmesh-relay

step "remove: it stops, keys stay; purge: nothing stays"
run dpkg --remove shadowmesh >/dev/null
expect inactive run systemctl is-active shadowmesh
expect inactive run systemctl is-active shadowmesh-relay
expect 4 run sh -c 'ls /var/lib/shadowmesh | wc -l'
run test -e /var/lib/shadowmesh-relay/identity.key
run dpkg --purge shadowmesh >/dev/null 2>&1
expect "" run sh -c 'find / -xdev -name "*shadowmesh*"; getent passwd shadowmesh shadowmesh-relay; getent group | grep shadowmesh'
expect "" run sh -c 'ls /sys/class/net | grep tap'
echo "ok"
