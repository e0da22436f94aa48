# Runs machines in jails of Firecracker's jailer: what they do without one, who they are there, what
# a jail and a machine without one go on from, and what is left when a process is killed:
# jailer.sh BACKEND tests|look|kill|saved|pair|foreign.
. /srv/microvm/common.sh
# The machines of the test files, with a jailer: in a test file they cannot say so.
modules=$(grep -o '"/srv/modules[^"]*"' one_test.star)
lab() { # FILE FURTHER
	local names=a,b machines= name
	for name in a b; do
		machines+="${machines:+, }{\"name\": \"$name\", \"backend\": \"firecracker\", \"mem_size_mib\": 128, \"cmdline\": \"loglevel=1 noxsave\", \"boot_timeout\": \"40m\",
			\"image\": {\"rootfs\": {\"path\": \"/srv/root.tar\", \"kernel\": \"/srv/vmlinux\", \"modules\": $modules}}$2}"
		[ "$1" = /srv/pair.json ] || break
	done
	echo "{\"machines\": [$machines]}" > "$1"
}
jail=', "jailer_bin": "/srv/bin/jailer"'
lab /srv/jail.json "$jail"
lab /srv/pair.json "$jail"
for file in one pair hang; do grep -v -e '^[ab] = machine' -e '^image = ' ${file}_test.star > jailed_${file}_test.star; done
cat >> jailed_one_test.star <<'END'

def test_pause():
    a.succeed("true", timeout = "40m")
    a.pause()
    a.resume()
    a.succeed("true", timeout = "5m")
END
cat > jailed_state_test.star <<'END'
def setup():
    a.succeed("echo here > /run/where", timeout = "40m")

def test_goes_on():
    assert_eq(a.succeed("cat /run/where", timeout = "5m"), "here\n")
END

# jailed prints the processes of Firecrackers in jails.
jailed() { grep -lz '^/firecracker$' /proc/[0-9]*/cmdline 2> /dev/null | cut -d/ -f3 || true; }

# all_left waits until nothing is left of a jail either: a process, a mount, a device node.
all_left() {
	nothing_left
	[ -z "$(jailed)" ] || { echo "these jails are left: $(jailed)"; return 1; }
	[ -z "$(grep -l /srv/state /proc/[0-9]*/mountinfo 2> /dev/null)" ] || { echo "a mount is left"; return 1; }
	[ -z "$(find /srv/state /srv/cache -type b -o -type c)" ] || { echo "device nodes are left"; return 1; }
}

stamps() { find /srv/cache /srv/vmlinux /srv/root.tar -type f ! -path '*/run/*' ! -path '*/used' ! -path '*/lock/*' -printf '%p %u %g %m\n' | sort; }

hang_jailed() { hang --machine-config /srv/jail.json jailed_hang_test.star; }

ran() { # ARGUMENT...
	local code=0
	echo "--- $*"
	"$@" || code=$?
	all_left
	[ $code = 0 ]
}

jailer --version
case $2 in
tests) # The cache has a snapshot of that machine's boot without a jail, from which this begins.
	stamps > /srv/before
	ran attest run -v -j 1 --timeout 3h --machine-config /srv/jail.json --run 'test_(commands|checkpoint|pause|power_off|reboot|crash)' jailed_one_test.star
	stamps > /srv/after
	changed=$(comm -23 /srv/before /srv/after)
	[ -z "$changed" ] || { echo "these of the cache are gone, or have another owner or mode: $changed"; exit 1; }
	;;
look)
	code=0
	setpriv --reuid 65534 --regid 65534 --clear-groups env HOME=/tmp XDG_CACHE_HOME=/tmp/nobody ATTEST_STATE_DIR=/tmp/nobodys \
		attest run --machine-config /srv/jail.json jailed_hang_test.star > /tmp/said 2>&1 || code=$?
	echo "without root, exit code $code:"
	cat /tmp/said
	[ $code = 4 ]
	grep -q 'the jailer is not supported by backend firecracker: it needs root, .* (this is uid 65534); run attest as root, or leave jailer_bin out' /tmp/said
	hang_jailed
	pid=$(jailed)
	grep -E '^(Uid|Gid|Groups|CapEff|NoNewPrivs|Seccomp|NSpid):' /proc/$pid/status
	grep -qP '^Uid:\t65534\t65534\t65534\t65534$' /proc/$pid/status
	grep -qP '^CapEff:\t0+$' /proc/$pid/status
	for ns in mnt net pid; do
		[ "$(readlink /proc/$pid/ns/$ns)" != "$(readlink /proc/self/ns/$ns)" ]
	done
	echo "it sees:"
	ls -ln /proc/$pid/root/ /proc/$pid/root/dev
	cat /proc/$pid/mounts
	[ -z "$(find /srv/state -type b -o -type c)" ]
	echo "its memory:"
	grep -E '^(Rss|Shared_Clean|Private_Dirty)' /proc/$pid/smaps_rollup
	echo secret > /srv/secret
	socket=$(find /srv/state -name api.sock)
	said=$(curl -s --unix-socket "$socket" -X PATCH http://localhost/drives/d0 -d '{"drive_id":"d0","path_on_host":"/srv/secret"}')
	echo "it says of a file of the host: $said"
	grep -q 'No such file' <<< "$said"
	kill -INT %%
	wait %% && code=0 || code=$?
	echo "attest ended with $code"
	[ $code = 130 ]
	all_left
	;;
kill)
	for victim in firecracker attest-jail attest-supervisor attest; do
		hang_jailed
		case $victim in
		firecracker) pid=$(jailed) ;;
		*) pid=$(find_process attest $victim) ;;
		esac
		echo "killing $victim, process $pid"
		kill -9 $pid
		wait %% && code=0 || code=$?
		echo "attest ended with $code"
		tail -n 5 /tmp/hangs
		all_left
	done
	;;
saved) # What was saved in a jail goes on without one, and the other way round.
	lab /srv/free.json ""
	ran attest snapshot build -o /srv/saved_in_jail --machine-config /srv/jail.json jailed_state_test.star
	ran attest snapshot build -o /srv/saved_free --machine-config /srv/free.json jailed_state_test.star
	find /srv/saved_in_jail /srv/saved_free -name memory -printf '%p %u %m %s bytes\n'
	lab /srv/out.json ", \"snapshot_path\": \"$(dirname "$(find /srv/saved_in_jail -name memory)")\""
	lab /srv/in.json "$jail, \"snapshot_path\": \"$(dirname "$(find /srv/saved_free -name memory)")\""
	grep -A 9 '^def test_goes_on' jailed_state_test.star > goes_on_test.star
	ran attest run -v --timeout 3h --machine-config /srv/out.json goes_on_test.star
	ran attest run -v --timeout 3h --machine-config /srv/in.json goes_on_test.star
	;;
pair) # Two machines, a fault between them, and forks that share memory.
	ran attest run -v -j 1 --timeout 3h --machine-config /srv/pair.json -o /srv/out jailed_pair_test.star
	;;
foreign) # A kernel, an initrd and a root of somebody else, a further disk, and persistent memory.
	ran bash /srv/microvm/foreign.sh firecracker /srv/bin/jailer
	;;
esac
