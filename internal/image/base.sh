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
# The same for what attest's own /init or its agent has done: remounting the root,
# stirring the random pool; and for records of boots in utmp.
for u in systemd-remount-fs.service systemd-random-seed.service systemd-update-utmp.service \
	systemd-update-utmp-runlevel.service; do
	ln -sf /dev/null $unit/$u
done
# Modules that are loaded, and file systems mounted, for whoever may want them:
# who does loads fuse or configfs anyway, and there is no screen.
for u in modprobe@drm.service sys-fs-fuse-connections.mount sys-kernel-config.mount; do
	ln -sf /dev/null $unit/$u
done
rm -f etc/modules-load.d/modules.conf
for g in systemd-veritysetup-generator systemd-integritysetup-generator systemd-system-update-generator systemd-run-generator \
	systemd-getty-generator systemd-gpt-auto-generator systemd-hibernate-resume-generator systemd-bless-boot-generator; do
	ln -sf /dev/null etc/systemd/system-generators/$g
done

# Coldplug is a quarter of an emulated boot, and most of it is for devices that no
# rule of udev's does anything with but to load modules for the CPU (kvm, aesni),
# which a test that wants them can load itself.
mkdir -p $unit/systemd-udev-trigger.service.d
{
	printf '[Service]\nExecStart=\nExecStart=-udevadm trigger --type=devices --action=add'
	for s in acpi bdi clockevents clocksource container cpu dmi event_source leds mem memory \
		memory_tiering node pci_bus thermal tty vc vtconsole wakeup workqueue; do
		printf ' --subsystem-nomatch=%s' $s
	done
	# Of the 70 terminals, those that units wait for (dev-ttyS0.device).
	printf '\nExecStart=-udevadm trigger --type=devices --action=add --subsystem-match=tty --sysname-match=ttyS[0-3] --sysname-match=hvc*\n'
} > $unit/systemd-udev-trigger.service.d/attest.conf

# A credential costs each of these a file system of its own; there are none.
for u in systemd-sysctl systemd-tmpfiles-setup systemd-tmpfiles-setup-dev systemd-sysusers; do
	mkdir -p $unit/$u.service.d
	printf '[Service]\nLoadCredential=\n' > $unit/$u.service.d/attest.conf
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

# Nothing is left to be updated at the first boot (systemd-update-done(8)).
touch etc/.updated var/.updated

# The last step: without this nothing of the build is believed.
{ echo "$ATTEST_END"; cat var/lib/dpkg/status; } > attest-end
