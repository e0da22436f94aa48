# Has attest refuse what cannot work, and looks at the exit code, at what is said, and at
# what is left.
. /srv/microvm/common.sh
failed=0
refused() { # CODE TEXT COMMAND...
	local code=0 want=$1 text=$2
	shift 2
	"$@" > /tmp/said 2>&1 || code=$?
	if [ $code != $want ] || ! grep -qF "$text" /tmp/said; then
		failed=1
		echo "got exit code $code, want $want and \"$text\": $*"
		cat /tmp/said
	else
		echo "$want: $(grep -F -m 1 "$text" /tmp/said)"
	fi
	nothing_left
}
variable=ATTEST_$(tr a-z- A-Z_ <<< $backend)
run="attest run --backend $backend --run test_boot one_test.star"

refused 3 "see the environment variable $variable" env $variable=/nonexistent $run
refused 3 "no version in the output of --version" env $variable=/bin/true $run
# What a measurement says here depends on the load of the host, so its answer is written down.
measured() { echo "{\"kvm\": $1, \"rate\": $2, \"host\": 1, \"reason\": \"$3\"}" > $XDG_CACHE_HOME/attest/accel-$(cat /proc/sys/kernel/random/boot_id).json; }
measured false 4e6 "/dev/kvm opens but is emulated in software"
refused 4 "is emulated in software" env ATTEST_ACCEL= $run
measured true 4e9 "/dev/kvm runs guests in hardware"
mv /dev/kvm /dev/away
refused 4 "/dev/kvm does not exist" env ATTEST_ACCEL= $run
mv /dev/away /dev/kvm
mv /dev/net/tun /dev/net/away
refused 4 "open /dev/net/tun: no such file or directory" attest run --backend $backend --run test_fault pair_test.star
mv /dev/net/away /dev/net/tun

lab() { echo "{\"machines\": [{\"name\": \"f\", \"backend\": \"$backend\", $1}]}" > /srv/lab.json; }
of_lab="attest run --cold --machine-config /srv/lab.json foreign_test.star"
head -c 1048576 /dev/zero > /srv/nothing.img
lab '"kernel_image_path": "/srv/vmlinux", "rootfs_path": "/srv/nothing.img"'
refused 2 "is not a file system, nor a disk with one" $of_lab
lab '"kernel_image_path": "/srv/root.tar", "rootfs_path": "/srv/nothing.img"'
refused 2 "neither a bzImage nor an ELF file" $of_lab
lab '"kernel_image_path": "/srv/vmlinux", "rootfs_path": "/srv/nothing.img", "tap_interfaces": [["eth0", "tap0", "52:54:00:12:01:01"]]'
refused 4 "attest makes TAPs of its own" $of_lab
[ "$backend" != firecracker ] || {
	mke2fs -q -t ext4 /srv/small.ext4 4M
	lab '"kernel_image_path": "/srv/vmlinux", "rootfs_path": "/srv/small.ext4", "jailer_bin": "jailer"'
	refused 3 "jailer: not found on PATH" $of_lab
	lab '"kernel_image_path": "/srv/vmlinux", "rootfs_path": "/srv/small.ext4", "jailer_bin": "/bin/true"'
	refused 3 "/bin/true: no version in the output of --version" $of_lab
}

deaf=/srv/deaf/lib/modules/$(uname -r)
mkdir -p /srv/deaf
cp -a /srv/modules/lib /srv/deaf/
find /srv/deaf -name '*vsock*' -delete
depmod -b /srv/deaf $(uname -r)
sed "s|modules = \"[^\"]*\"|modules = \"$deaf\"|" one_test.star > deaf_test.star
refused 3 "this kernel has no vsock" attest run --cold --timeout 20m --backend $backend --run test_boot deaf_test.star

{
	grep '^a = ' one_test.star
	printf 'def setup():\n    a.succeed("true", timeout = "40m")\n\ndef test_goes_on():\n    a.succeed("true", timeout = "5m")\n'
} > state_test.star
attest snapshot build --backend $backend -o /srv/saved state_test.star
mkdir -p /srv/other
cp /srv/bin/$backend /srv/other/
refused 4 "does not fit: it was made with another" env $variable=/srv/other/$backend attest run --from /srv/saved state_test.star
refused 4 "does not fit: it was made with another backend" attest run --backend mock --from /srv/saved state_test.star
exit $failed
