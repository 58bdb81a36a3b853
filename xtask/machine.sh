#!/bin/bash
# Makes the disk and takes the kernel of the machine that `cargo xtask machine` boots.
#
#   xtask/machine.sh DIR
#
# Leaves DIR/root.ext4 and DIR/vmlinuz. The package mirror is the one this machine's apt is
# configured with. The kernel comes without its usual initrd: its drivers for NVMe and ext4 are
# built in, so that it mounts the disk by itself.
set -euo pipefail

out=${1:?"usage: machine.sh DIR"}
# The engine needs Linux 6.7; this release has 6.12 and systemd 257.
suite=trixie
packages=(
    systemd-sysv libpam-systemd dbus login util-linux mount kmod procps
    iproute2 iptables nftables busybox-static strace runc crun
    nfs-kernel-server
)
# Nothing of it is needed, and under emulation every unit costs.
masked=(
    getty@tty1.service serial-getty@ttyS0.service nftables.service
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer
    e2scrub_all.timer e2scrub_reap.service fstrim.timer
    systemd-binfmt.service systemd-firstboot.service systemd-hwdb-update.service
    systemd-journal-flush.service systemd-pcrphase.service systemd-timesyncd.service
    systemd-udev-settle.service systemd-udev-trigger.service systemd-udevd.service
    systemd-udevd-control.socket systemd-udevd-kernel.socket
    systemd-update-done.service systemd-update-utmp.service
)

codename=$(. /etc/os-release && echo "${VERSION_CODENAME:?}")
mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' | awk -v r="$codename" '$2 == r { print $1; exit }')
if [ -z "$mirror" ]; then
    echo "machine: apt knows no archive for $codename" >&2
    exit 1
fi

mkdir -p "$out"
tree=$(mktemp -d "$out/tree.XXXXXX")
trap 'rm -rf --one-file-system "$tree"' EXIT
include=$(IFS=,; echo "${packages[*]}")
kernel='
    cd /tmp
    package=$(apt-cache depends linux-image-cloud-amd64 | sed -n "s/^ *Depends: //p" | head -n1)
    apt-get download -q "$package"
    dpkg-deb --fsys-tarfile linux-image-*.deb | tar -x -C / --keep-directory-symlink
    rm linux-image-*.deb
    depmod -a "$(ls /usr/lib/modules)"'
mmdebstrap --mode=root --variant=minbase --include="$include" \
    --aptopt='APT::Install-Recommends "false"' --dpkgopt='force-unsafe-io' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --customize-hook="chroot \"\$1\" sh -ec '$kernel'" \
    "$suite" "$tree" "$mirror"

for unit in "${masked[@]}"; do
    ln -sf /dev/null "$tree/etc/systemd/system/$unit"
done
# Servers of files are started by those who need them.
rm -f "$tree"/etc/systemd/system/*.wants/{nfs-client.target,nfs-server.service,rpcbind.service,rpcbind.socket}
# The stage is a service like any other; what it runs, and with what, lies on the second disk.
mkdir -p "$tree/payload" "$tree/etc/systemd/system/multi-user.target.wants"
cat >"$tree/etc/systemd/system/stage.service" <<'UNIT'
[Unit]
Description=The test stage
Wants=systemd-logind.service
After=systemd-logind.service dbus.service

[Service]
Type=oneshot
StandardInput=null
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
ExecStart=/bin/sh -c 'modprobe virtio_blk; mount /dev/vda /payload; exec /bin/sh /payload/stage'
UNIT
ln -s ../stage.service "$tree/etc/systemd/system/multi-user.target.wants/stage.service"
: >"$tree/etc/fstab"
echo machine >"$tree/etc/hostname"
echo 00000000000000000000000000000001 >"$tree/etc/machine-id"

mv "$tree"/boot/vmlinuz-* "$out/vmlinuz"
rm -f "$out/root.ext4"
mke2fs -q -t ext4 -O ^has_journal -E lazy_itable_init=1 -d "$tree" "$out/root.ext4" 1G
