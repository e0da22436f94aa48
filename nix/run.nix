# Runs a test as a build. The reports are in the output: junit.xml, report.html and
# events.jsonl. Of a test that failed they are in the build's directory, which
# nix-build --keep-failed keeps.
{
  pkgs,
  lib ? pkgs.lib,
  driver,
  name,
  preScript ? "",
  kvm ? true,
  passthru ? { },
  meta ? { },
}:
pkgs.runCommand "vm-test-run-${name}"
  {
    requiredSystemFeatures = [ "nixos-test" ] ++ lib.optional kvm "kvm";
    passthru = {
      inherit driver;
    }
    // passthru;
    inherit meta;
  }
  ''
    export HOME=$TMPDIR XDG_CACHE_HOME=$TMPDIR/cache
    # Sockets need a short path, which that of a build outside of a sandbox is not.
    ATTEST_STATE_DIR=$(mktemp -d /tmp/attest.XXXXXX)
    export ATTEST_STATE_DIR
    trap 'rm -rf "$ATTEST_STATE_DIR"' EXIT
    ${preScript}
    status=0
    ${driver}/bin/attest-driver --output-dir $TMPDIR/report || status=$?
    if [ $status != 0 ]; then
      echo "the reports are in $TMPDIR/report if this build is run with --keep-failed" >&2
      exit $status
    fi
    mkdir -p $out
    cp -r $TMPDIR/report/. $out/
  ''
