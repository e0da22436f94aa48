# The state of a machine that has booted, as a store path: $out/NAME is what
# snapshot_path in a machine configuration takes. It is built again when the machine,
# its VMM or attest changes.
{
  pkgs,
  lib ? pkgs.lib,
  attest ? pkgs.attest,
  name,
  machine, # an element of "machines" in the machine configuration
  unit ? "multi-user.target", # what has to be active
  packages ? [ ],
}:
let
  config = pkgs.writeText "attest-machines-${name}.json" (
    builtins.toJSON {
      machines = [ machine ];
      vlans = machine.vlans or [ ];
    }
  );
  script = pkgs.writeText "snapshot-${name}.star" ''
    def setup():
        machines[0].wait_for_unit(${builtins.toJSON unit})
        machines[0].succeed("sync")

    # What goes on from the state; a file has to have something.
    def main():
        pass
  '';
in
pkgs.runCommand "attest-snapshot-${name}"
  {
    requiredSystemFeatures = [ "kvm" ];
    # A snapshot fits the kind of processor that it was made on.
    preferLocalBuild = true;
    allowSubstitutes = false;
    nativeBuildInputs = packages;
    passthru = {
      inherit config script;
    };
  }
  ''
    export HOME=$TMPDIR XDG_CACHE_HOME=$TMPDIR/cache
    # Sockets need a short path, which that of a build outside of a sandbox is not.
    ATTEST_STATE_DIR=$(mktemp -d /tmp/attest.XXXXXX)
    export ATTEST_STATE_DIR
    trap 'rm -rf "$ATTEST_STATE_DIR"' EXIT
    cp ${script} snapshot.star
    ${attest}/bin/attest snapshot build --cold --machine-config ${config} -o $TMPDIR/snapshot snapshot.star
    mkdir $out
    cp -r --sparse=always $TMPDIR/snapshot/. $out/
  ''
