# Has attest end machines whose agent does not answer: by the power button and an interrupt that
# cannot be masked, or by Ctrl-Alt-Del where the VMM has neither.
. /srv/microvm/common.sh
one() { # CODE ARGUMENT...
	local code=0 want=$1
	shift
	attest run -v -j 1 --timeout 3h --backend "$backend" "$@" || code=$?
	nothing_left
	[ $code = $want ] || { echo "exit code $code, want $want"; return 1; }
}
case $backend in
cloud-hypervisor)
	one 0 --run test_button unanswered_test.star
	one 0 button_test.star
	one 0 --run test_interrupt unanswered_test.star
	;;
firecracker)
	one 0 --run test_keys unanswered_test.star
	one 4 button_test.star
	;;
esac
