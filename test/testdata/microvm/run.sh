# Runs a test file on a backend, and looks at what it leaves: run.sh BACKEND ARGUMENT...
. /srv/microvm/common.sh
shift
code=0
attest run -v -j 1 --timeout 3h --backend "$backend" "$@" || code=$?
nothing_left
exit $code
