# Runs two machines, and looks for what one has sent to the other in what was captured.
. /srv/microvm/common.sh
code=0
attest run -v -j 1 --timeout 3h --backend "$backend" -o /srv/out pair_test.star || code=$?
nothing_left
for file in $(find /srv/out -name pings.pcapng); do
	echo "captured: $(stat -c %s "$file") bytes, the pattern $(grep -ao captured "$file" | wc -l) times"
done
grep -q capturedcaptured "$file"
exit $code
