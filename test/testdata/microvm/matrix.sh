# Runs tests on a mock and on the VMM, and looks for the marks of the one that ends otherwise.
. /srv/microvm/common.sh
code=0
attest run -j 1 --timeout 3h --backend mock,"$backend" --junit /srv/matrix.xml --html /srv/matrix.html matrix_test.star > /srv/matrix.txt || code=$?
cat /srv/matrix.txt
echo "exit code $code"
[ $code = 1 ]
nothing_left
grep -F 'test_kernel [mock] ≠' /srv/matrix.txt
grep -F "test_kernel [$backend] ≠" /srv/matrix.txt
grep -F '≠ 1 test ended otherwise on one backend than on another' /srv/matrix.txt
grep -F "name=\"ended_otherwise\" value=\"passed [$backend]\"" /srv/matrix.xml
grep -F 'name="ended_otherwise" value="failed [mock]"' /srv/matrix.xml
grep -oF "≠ ended otherwise: passed [$backend]" /srv/matrix.html
grep -oF '≠ ended otherwise: failed [mock]' /srv/matrix.html
