# Kills each process of a run, one run after the other, and looks at what is left.
. /srv/microvm/common.sh
# victims are the programs of which each process is killed: all that there are.
victims() { processes '*' | cut -d ' ' -f 2 | sort -u | paste -sd ' '; }
for victim in "$backend $backend" 'attest attest-supervisor' 'attest attest'; do
	hang
	[ "$(victims)" = "attest attest-supervisor $backend" ] || { echo "there is somebody else: $(victims)"; exit 1; }
	pid=$(find_process $victim)
	echo "killing ${victim#* }, process $pid"
	kill -9 "$pid"
	wait %% && code=0 || code=$?
	echo "attest ended with $code"
	nothing_left
done
