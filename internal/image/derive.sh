# Run by mmdebstrap when the base image is unpacked. $1 is the root, descriptor 4
# a tar of the spec's files, and of its run lines as /tmp/attest-run/NNNN.
set -euf
exec >&2 </dev/null
root=$1
end=$ATTEST_END
unset ATTEST_END
# Names have to be found during the build; the image's own file comes back at the end.
mv "$root/etc/resolv.conf" "$root/tmp/attest-resolv.conf"
if [ -e /etc/resolv.conf ]; then
	cat /etc/resolv.conf > "$root/etc/resolv.conf"
fi
apt() {
	chroot "$root" apt-get -q --yes --no-install-recommends \
		-o Dpkg::Options::=--force-unsafe-io -o Dpkg::Use-Pty=false "$@"
}
if [ -n "$ATTEST_PACKAGES" ]; then
	echo "attest: phase installing packages"
	# The lists are as old as the base: what has been replaced on the mirror
	# since is found with new ones.
	if [ "$ATTEST_LISTS" = old ]; then
		apt update
	fi
	if ! apt --download-only install -- $ATTEST_PACKAGES; then
		[ "$ATTEST_LISTS" = aged ] || exit 100
		apt update
		apt --download-only install -- $ATTEST_PACKAGES
	fi
	apt --no-download install -- $ATTEST_PACKAGES
	chroot "$root" apt-get clean
fi
# The run lines may do with the packages what they like.
cp "$root/var/lib/dpkg/status" "$root.status"
if [ -n "$ATTEST_FILES" ]; then
	echo "attest: phase writing files"
	tar -C "$root" --keep-directory-symlink --numeric-owner -xf - <&4
fi
i=0
while [ $i -lt $ATTEST_RUN ]; do
	echo "attest: run $i"
	code=0
	chroot "$root" /bin/sh -e /tmp/attest-run/$i || code=$?
	if [ $code -ne 0 ]; then
		echo "attest: run $i failed $code"
		exit 1
	fi
	i=$((i + 1))
done
echo "attest: phase packing the image"
# Unless a package or a run line made it its own.
if [ -e /etc/resolv.conf ] && [ ! -L "$root/etc/resolv.conf" ] && cmp -s /etc/resolv.conf "$root/etc/resolv.conf"; then
	mv "$root/tmp/attest-resolv.conf" "$root/etc/resolv.conf"
fi
rm -f "$root/tmp/attest-resolv.conf"
# The packages' own scripts have done what would be done at the first boot.
touch "$root/etc/.updated" "$root/var/.updated"
# The last step: without this nothing of the build is believed.
{ echo "$end"; cat "$root.status"; } > "$root/attest-end"
