# Boots what somebody else has built: a kernel, an initrd and a root without anything of
# attest's, which offers a root shell on its vsock: foreign.sh BACKEND [JAILER].
. /srv/microvm/common.sh
release=$(uname -r) root=/srv/foreign
cp -a /srv/root $root
for name in base64 chmod chroot env mount setsid socat sort tail timeout; do
	path=$(type -P $name)
	cp -L "$path" $root/bin/
	ldd "$path" | grep -o '/[^ ]*' | while read -r lib; do
		mkdir -p "$root$(dirname "$lib")"
		cp -Lu "$lib" "$root$lib"
	done
done
mkdir -p $root/lib/modules $root/new
cp -a /srv/modules/lib/modules/$release $root/lib/modules/
printf '#!/bin/bash\necho "Spawning backdoor root shell..."\nexec bash --norc\n' > $root/backdoor
cat > $root/start <<'END'
#!/bin/bash
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
modprobe -a vmw_vsock_virtio_transport
exec socat VSOCK-LISTEN:1234,fork EXEC:/backdoor
END
cat > $root/init <<'END'
#!/bin/bash
export PATH=/bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
modprobe -a virtio_mmio virtio_pci virtio_blk ext4
until mount -t ext4 /dev/vda /new; do sleep 0.1; done
exec chroot /new /start
END
chmod +x $root/{backdoor,start,init}
(cd $root && find . | cpio -o -H newc --quiet > /srv/foreign.cpio)
mke2fs -q -t ext4 -d $root /srv/foreign.ext4 256M
head -c 25165824 /dev/zero > /srv/store.img
printf 'the store' | dd of=/srv/store.img conv=notrunc status=none
further=
if [ "$backend" = firecracker ]; then
	head -c 4194304 /dev/zero > /srv/pmem.img
	printf persistent | dd of=/srv/pmem.img conv=notrunc status=none
	further=', "pmem_image_paths": ["/srv/pmem.img"]'
	cat >> foreign_test.star <<'END'
    # The driver is loaded here, by the guest that was restored.
    assert_eq(f.succeed("modprobe -a virtio_pmem nd_pmem; until [ -b /dev/pmem0 ]; do sleep 0.5; done; head -c 10 /dev/pmem0", timeout = "10m"), "persistent")
END
fi
[ -z "${2-}" ] || further+=", \"jailer_bin\": \"$2\""
cat > /srv/lab.json <<END
{"machines": [{"name": "f", "backend": "$backend", "kernel_image_path": "/srv/vmlinux", "initrd_path": "/srv/foreign.cpio", "rootfs_path": "/srv/foreign.ext4",
  "kernel_boot_args": "loglevel=1 noxsave", "store_image_path": "/srv/store.img", "mem_size_mib": 256,
  "disk_bytes_per_second": 2000000, "disk_ops_per_second": 1000$further}]}
END
export ATTEST_BOOT_TIMEOUT=40m
code=0
attest run -v --cold --timeout 3h --machine-config /srv/lab.json foreign_test.star || code=$?
nothing_left
exit $code
