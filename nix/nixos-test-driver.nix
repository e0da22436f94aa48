# The NixOS test driver, by attest, in the shape that NixOS' test framework takes
# (pythonTestDriverPackage): the same programs, type hints for mypy where Python
# finds them, and the same arguments to override. What attest does not need of these is
# ignored. The framework sets enableNspawn if a test has containers, which are refused when
# it is evaluated.
{
  lib,
  runCommand,
  makeWrapper,
  attest,
  python3,
  qemu_test,
  tesseract,
  qemu_pkg ? qemu_test,
  extraPythonPackages ? (_: [ ]),
  enableOCR ? false,
  tesseract4 ? tesseract,
  enableNspawn ? false,
  ...
}:
let
  path = lib.makeBinPath (
    [
      (python3.withPackages extraPythonPackages)
      qemu_pkg
    ]
    ++ lib.optional enableOCR tesseract4
  );
in
lib.throwIf enableNspawn
  "attest: containers (systemd-nspawn) are not supported: make them nodes, or let this test have NixOS' own driver"
  runCommand
  "nixos-test-driver-${attest.version}"
  {
    nativeBuildInputs = [ makeWrapper ];
    propagatedBuildInputs = [ python3 ];
    passthru = {
      inherit attest;
    };
    meta = attest.meta // {
      mainProgram = "nixos-test-driver";
    };
  }
  ''
    mkdir -p $out/bin $out/nix-support
    for program in nixos-test-driver generate-driver-symbols; do
      makeWrapper ${attest}/bin/$program $out/bin/$program --inherit-argv0 --prefix PATH : ${path}
    done
    HOME=$TMPDIR ${attest}/bin/attest python-stubs $out/${python3.sitePackages}
  ''
