#!/usr/bin/env bash
# The first process of one machine of a lab: makes the machine out of namespaces, says "ready", then only reaps.
# Called by machine.py in new mount, UTS and process namespaces, inside the machine's network namespace:
#   machine.sh NAME MARK RUN_DIR HOSTS_FILE
set -euo pipefail
name=$1 mark=$2 run_dir=$3 hosts=$4

hostname "$name"
mount --make-rprivate /
mount -t proc proc /proc

# /sys shows the devices of the network namespace it was mounted in, so it is mounted anew; cgroups stay the host's.
staging=$(mktemp -d)
mount --rbind /sys/fs/cgroup "$staging"
mount -t sysfs sysfs /sys
mount --rbind "$staging" /sys/fs/cgroup
umount -l "$staging"

# Podman keeps its locks in /dev/shm and frees them all on what it takes for a boot: never share it between machines.
mount -t tmpfs tmpfs /dev/shm

# A /run of its own, but for the one folder whose sockets the real machine should see.
mount --bind "$run_dir" "$staging"
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/hivemesh /run/lock /run/netns
mount --move "$staging" /run/hivemesh
rmdir "$staging"

# Shared, so that a namespace pinned here later is seen by processes that already have a mount namespace of their own.
mount --bind /run/netns /run/netns
mount --make-shared /run/netns

mount --bind "$hosts" /etc/hosts
# No name server: there is none on the underlay, and waiting for one would turn a failed image pull into minutes.
resolver=$(readlink -m /etc/resolv.conf)
mkdir -p "${resolver%/*}" /run/empty
[ -e "$resolver" ] || : >"$resolver"
: >/run/empty/resolv.conf
mount --bind /run/empty/resolv.conf "$resolver"

ip link set lo up
echo ready
exec </dev/null >/dev/null 2>&1
cd /
# Ignoring SIGCHLD is inherited across exec, and makes the kernel reap every orphan without a process that waits.
trap '' CHLD
exec -a "$mark" sleep infinity
