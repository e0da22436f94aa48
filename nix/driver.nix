# The program that runs a test: attest with its machines and its script. Arguments
# that it is given are attest's.
{
  pkgs,
  lib ? pkgs.lib,
  attest ? pkgs.attest,
  name,
  machines, # elements of "machines" in the machine configuration
  script, # a file: .py or .star
  vlans ? [ ],
  globalTimeout ? 3600,
  extraDriverArgs ? [ ],
  extraPythonPackages ? (_: [ ]),
  enableOCR ? false,
  skipCheck ? false,
  packages ? [ ],
}:
let
  config = pkgs.writeText "attest-machines-${name}.json" (
    builtins.toJSON {
      inherit machines vlans;
      global_timeout = globalTimeout;
    }
  );
  python = pkgs.python3.withPackages (ps: extraPythonPackages ps);
  path = lib.makeBinPath ([ python ] ++ packages ++ lib.optional enableOCR pkgs.tesseract);
  extension = if lib.hasSuffix ".star" (toString script) then "star" else "py";
in
pkgs.runCommand "attest-driver-${name}"
  {
    nativeBuildInputs = [ pkgs.makeWrapper ];
    preferLocalBuild = true;
    passthru = {
      inherit config machines script;
    };
    meta.mainProgram = "attest-driver";
  }
  ''
    mkdir -p $out/bin $out/share/attest
    cp ${config} $out/share/attest/machines.json
    cp ${script} $out/share/attest/test.${extension}
    ${lib.optionalString (!skipCheck) ''
      export HOME=$TMPDIR PATH=${path}:$PATH
      ${attest}/bin/attest check --machine-config $out/share/attest/machines.json $out/share/attest/test.${extension}
    ''}
    makeWrapper ${attest}/bin/attest $out/bin/attest-driver \
      --prefix PATH : ${path} \
      --set machineConfig $out/share/attest/machines.json \
      --set testScript $out/share/attest/test.${extension} \
      ${lib.concatMapStringsSep " " (arg: "--add-flags ${lib.escapeShellArg arg}") extraDriverArgs}
  ''
