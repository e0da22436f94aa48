# Run by mmdebstrap when the base image is unpacked: fetch a kernel package and
# unpack it to /attest-kernel without installing it, which would make an
# initramfs. A metapackage leads to the package that it depends on. $1 is the root.
set -eu
exec >&2 </dev/null
cat /etc/resolv.conf > "$1/etc/resolv.conf"
chroot "$1" /bin/sh -eu -s "$ATTEST_KERNEL" <<'EOF'
package=$1
mkdir /attest-kernel
cd /attest-kernel
updated=
for step in 1 2 3; do
	echo "attest: phase downloading $package"
	if ! apt-get -q -o APT::Sandbox::User=root download "$package"; then
		[ -z "$updated" ] || exit 100
		updated=1
		apt-get -q update
		apt-get -q -o APT::Sandbox::User=root download "$package"
	fi
	echo "attest: phase unpacking $package"
	dpkg-deb -x ./*.deb .
	if ls boot/vmlinu[xz]-* >/dev/null 2>&1; then
		break
	fi
	next=$(dpkg-deb -f ./*.deb Depends | tr ',|' '\n\n' | sed -n 's/^ *\(linux-image-[^ ]*\).*/\1/p' | head -n 1)
	rm -rf ./*
	if [ -z "$next" ]; then
		echo "E: Package $package contains no kernel"
		exit 100
	fi
	package=$next
done
release=$(ls boot | sed -n 's/^vmlinu[xz]-//p' | head -n 1)
echo "attest: phase indexing modules"
mods=lib/modules
[ -d lib/modules ] || mods=usr/lib/modules
mkdir -p out
mv boot/vmlinu[xz]-* out/vmlinuz
echo "$release" > out/release
if [ -d "$mods/$release" ]; then
	mkdir -p tree/lib/modules
	mv "$mods/$release" tree/lib/modules/
	rm -f tree/lib/modules/*/build tree/lib/modules/*/source
	depmod -b tree "$release"
	mv "tree/lib/modules/$release" out/modules
fi
EOF
# The last step: without this nothing of the build is believed.
{
	echo "$ATTEST_END"
	if [ -d "$1/attest-kernel/out/modules" ]; then
		echo modules
	fi
} > "$1/attest-end"
