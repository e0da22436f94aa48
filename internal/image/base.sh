# Run by mmdebstrap when the base image's packages are installed. $1 is the root.
# What is set here is what differs from a plain Debian install, and why.
set -eu
exec >&2 </dev/null
cd "$1"

# The agent names the guest and gives it its resolver; the build host's are
# nobody's business. Empty files, so that a package has something to replace.
: > etc/resolv.conf
chmod 644 etc/resolv.conf
echo localhost > etc/hostname
chmod 644 etc/hostname
printf '127.0.0.1\tlocalhost\n::1\t\tlocalhost ip6-localhost ip6-loopback\nff02::1\t\tip6-allnodes\nff02::2\t\tip6-allrouters\n' > etc/hosts

# The initramfs has mounted the root already. An empty machine-id (in contrast to
# a missing one) is filled at boot without a "first boot", which would apply
# presets and ask questions.
: > etc/fstab
: > etc/machine-id

unit=etc/systemd/system
mkdir -p $unit etc/systemd/system-generators etc/systemd/journald.conf.d etc/systemd/system.conf.d

# No graphical target, no work that comes by the clock: a test has its own.
ln -sf /lib/systemd/system/multi-user.target $unit/default.target
for u in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
	fstrim.timer man-db.timer logrotate.timer systemd-tmpfiles-clean.timer \
	e2scrub_reap.service; do
	ln -sf /dev/null $unit/$u
done

# Nothing to do in a guest, and each is a process start at boot: crash dumps in
# firmware, TPM measurements, growing partitions, questions on first boot,
# writing back a machine-id, moving the journal to disk.
for u in systemd-pstore.service systemd-pcrphase.service systemd-pcrphase-sysinit.service \
	systemd-repart.service systemd-firstboot.service systemd-machine-id-commit.service \
	systemd-journal-flush.service systemd-network-generator.service; do
	ln -sf /dev/null $unit/$u
done
for g in systemd-getty-generator systemd-gpt-auto-generator systemd-hibernate-resume-generator systemd-bless-boot-generator; do
	ln -sf /dev/null etc/systemd/system-generators/$g
done

# The serial console is a log that attest reads: no login on it. A login on tty1
# stays. root has no password, in the sense that none fits.
ln -sf /dev/null "$unit/serial-getty@.service"

# A network that is not there must not hold up the boot for two minutes.
ln -sf /dev/null $unit/systemd-networkd-wait-online.service

# The journal stays in memory: it is read through the agent, and writing it costs
# an emulated disk more than all else at boot. Nothing is dropped.
rm -rf var/log/journal
cat > etc/systemd/journald.conf.d/attest.conf <<EOF
[Journal]
Storage=volatile
RateLimitIntervalSec=0
EOF

# An emulated guest is slow, not broken.
cat > etc/systemd/system.conf.d/attest.conf <<EOF
[Manager]
DefaultTimeoutStartSec=300
DefaultDeviceTimeoutSec=300
EOF
