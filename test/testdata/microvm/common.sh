# What the scripts here share. $1 is the backend.
set -euo pipefail
backend=$1
export PATH=/srv/bin:$PATH ATTEST_ACCEL=kvm XDG_CACHE_HOME=/srv/cache ATTEST_STATE_DIR=/srv/state
mkdir -p /srv/state
cd /srv/microvm
sed -i "s|MODULES|\"/srv/modules/lib/modules/$(uname -r)\"|" *_test.star

# processes prints the processes of a program of /srv/bin, as their number and argv[0].
processes() {
	local dir name
	for dir in /proc/[0-9]*; do
		[[ $(readlink "$dir/exe") == /srv/bin/$1 ]] || continue
		{ read -rd '' name < "$dir/cmdline" && echo "${dir#/proc/} $name"; } 2> /dev/null || true
	done
}

# find_process prints the number of the one with an argv[0].
find_process() { processes "$1" | while read -r pid name; do [ "$name" != "$2" ] || echo "$pid"; done; }

# left prints what runs have left: processes, files, mounts, sockets.
left() {
	processes '*'
	find /srv/state /srv/cache/attest/run -mindepth 1 2> /dev/null || true
	grep -h /srv/state /proc/self/mountinfo /proc/net/unix || true
}

# nothing_left waits until there is nothing of that.
nothing_left() {
	for _ in {1..240}; do
		[ -n "$(left)" ] || return 0
		sleep 0.5
	done
	echo "this is left:"
	left
	return 1
}

# hang starts a run that never ends, and waits until its machine answers.
hang() { # [ARGUMENT...]
	[ $# -gt 0 ] || set -- --backend "$backend" hang_test.star
	attest run -v --timeout 3h "$@" > /tmp/hangs 2>&1 &
	for _ in {1..2400}; do
		! grep -q '^it hangs now' /tmp/hangs || return 0
		kill -0 $! || break
		sleep 0.5
	done
	cat /tmp/hangs
	return 1
}
