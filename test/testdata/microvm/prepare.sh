# Makes, in a guest with a kernel that can do KVM, what attest needs there to run
# microVMs: /dev/kvm, and an image of this guest's own programs and modules, in which
# nothing starts but attest's init.
set -euo pipefail
modprobe kvm_amd || modprobe kvm_intel
modprobe tun
test -c /dev/kvm

root=/srv/root modules=/srv/modules release=$(uname -r)
mkdir -p $root/{bin,dev,etc,proc,root,run,sys,tmp,usr/bin,var} $root/lib64
for name in bash cat date dd echo grep head hostname kmod ls mkdir od ping rm sh sha256sum sleep sync test true uname; do
	path=$(type -P $name) # not what the shell has built in
	cp -L "$path" $root/bin/
	ldd "$path" | grep -o '/[^ ]*' | while read -r lib; do
		mkdir -p "$root$(dirname "$lib")"
		cp -Lu "$lib" "$root$lib"
	done
done
ln -s kmod $root/bin/modprobe
echo root:x:0:0::/root:/bin/bash > $root/etc/passwd
echo root:x:0: > $root/etc/group
tar -C $root -cf /srv/root.tar .

mkdir -p $modules/lib/modules/$release
for name in virtio_mmio virtio_pci virtio_blk virtio_net virtio_rng vmw_vsock_virtio_transport erofs ext4 overlay pvpanic pvpanic_pci virtio_pmem nd_pmem button evdev; do
	{ modprobe --show-depends $name 2> /dev/null || true; } | while read -r kind path _; do
		[ $kind != insmod ] || cp --parents "$path" $modules/
	done
done
cp /lib/modules/$release/modules.{builtin,order} $modules/lib/modules/$release/ 2> /dev/null || true
depmod -b $modules $release
