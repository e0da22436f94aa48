# Asks a VMM, as whoever has broken out into it could, for a file that is none of its
# machine's: it does not see that, nor the networks of the host.
. /srv/microvm/common.sh
echo secret > /srv/secret
chmod 644 /srv/secret
hang
pid=$(find_process $backend $backend)
socket=$(find /srv/state -name api.sock)
ask() { curl -s --unix-socket "$socket" -X "$1" "http://localhost$2" -d "$3"; }
case $backend in
firecracker) said=$(ask PATCH /drives/d0 '{"drive_id":"d0","path_on_host":"/srv/secret"}') ;;
cloud-hypervisor) said=$(ask PUT /api/v1/vm.add-disk '{"path":"/srv/secret","readonly":true}') ;;
esac
echo "the VMM says of a file of the host: $said"
grep -q 'Permission denied' <<< "$said"
[ "$(readlink /proc/$pid/ns/net)" != "$(readlink /proc/self/ns/net)" ]
grep NoNewPrivs /proc/$pid/status
kill -INT %%
wait %% && code=0 || code=$?
echo "attest ended with $code"
[ $code = 130 ]
nothing_left
