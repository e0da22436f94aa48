# Has a kernel panic that says so on the console, and where the VMM has a device to tell it
# (pvpanic), one that says nothing.
. /srv/microvm/common.sh
bash /srv/microvm/run.sh "$backend" --run test_panic one_test.star
[ "$backend" = cloud-hypervisor ] || exit 0
sed 's/loglevel=1/loglevel=0/' one_test.star > silent_test.star
bash /srv/microvm/run.sh "$backend" --run test_panic silent_test.star
