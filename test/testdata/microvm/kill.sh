# Kills each process of a run, one run after the other, and looks at what is left.
. /srv/microvm/common.sh
for victim in "$backend $backend" 'attest attest-supervisor' 'attest attest'; do
	hang
	pid=$(find_process $victim)
	echo "killing ${victim#* }, process $pid"
	kill -9 "$pid"
	wait %% && code=0 || code=$?
	echo "attest ended with $code"
	nothing_left
done
