# Measures machines on all VMMs that are here, and on a mock, in one run.
. /srv/microvm/common.sh
vmms=$(find /srv/bin -name firecracker -o -name cloud-hypervisor | sort | xargs -n 1 basename | paste -sd ,)
attest bench --samples 2 --backend mock,$vmms --json one_test.star > /srv/bench.json
nothing_left
cat /srv/bench.json
[ "$(grep -c '"total"' /srv/bench.json)" = "$(tr , '\n' <<< "mock,$vmms" | wc -l)" ]
