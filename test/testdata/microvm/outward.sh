# Runs a machine with a way out of its lab to a port of this host, and to no other.
. /srv/microvm/common.sh
for port in 8080 8081; do
	socat TCP-LISTEN:$port,bind=127.0.0.1,fork,reuseaddr SYSTEM:"echo this is port $port" &
done
code=0
attest run -v -j 1 --timeout 3h --backend "$backend" --json /srv/events.jsonl outward_test.star || code=$?
kill %1 %2
nothing_left
grep -o '"destination":"[^"]*"[^}]*"allowed":[a-z]*' /srv/events.jsonl
exit $code
