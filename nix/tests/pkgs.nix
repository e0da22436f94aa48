# As much of nixpkgs as nix/ uses, made of this host's programs.
{
  lib,
  # A directory with bin/attest and bin/attest-agent.
  attestDir ? "/nonexistent",
  # The text of a start script, of a machine's configuration.
  startScript ? (_: "exit 1\n"),
}:
let
  path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

  runCommand =
    name: attributes: script:
    let
      passed = removeAttrs attributes [
        "passthru"
        "meta"
        "nativeBuildInputs"
        "propagatedBuildInputs"
      ];
    in
    derivation (
      passed
      // {
        inherit name;
        system = builtins.currentSystem;
        builder = "/bin/bash";
        PATH = path;
        # Without the exit bash may become the last program, and those of coreutils close
        # their output before they end: Nix takes that for the end, and kills what is left.
        args = [
          "-euo"
          "pipefail"
          "-c"
          ". ${./stdenv.sh}\ncd $NIX_BUILD_TOP\n${script}\nexit 0\n"
        ];
      }
    )
    // (attributes.passthru or { })
    // {
      meta = attributes.meta or { };
      # For tests of what was asked for.
      attributes = attributes // {
        inherit name script;
      };
    };

  # The host's programs as a package.
  host = {
    outPath = "/usr";
  };

  callPackage =
    file: given:
    let
      f = import file;
      wanted = builtins.intersectAttrs (builtins.functionArgs f) (pkgs // { inherit lib; });
      make = args: f args // { override = new: make (args // new); };
    in
    make (wanted // given);

  pkgs = {
    inherit lib runCommand callPackage;
    path = ./nixpkgs;
    stdenv.hostPlatform = {
      isx86 = true;
      system = "x86_64-linux";
    };
    attest = {
      outPath = attestDir;
      type = "derivation";
      version = "0-test";
      meta = { };
      agent = {
        outPath = attestDir;
        type = "derivation";
      };
    };
    # The package is not built here, but evaluated.
    buildGoModule = given: pkgs.attest // { inherit given; };
    mkShell = given: given;
    nixfmt-rfc-style = host;
    writeText =
      name: text:
      runCommand name {
        inherit text;
        passAsFile = [ "text" ];
        passthru.text = text;
      } "cp $textPath $out\n";
    writeShellScript =
      name: text:
      runCommand name {
        text = "#!/bin/bash\n${text}";
        passAsFile = [ "text" ];
      } "cp $textPath $out\nchmod +x $out\n";
    # Nix gives a build the closure of a path as lines: a path, its deriver, how many
    # references it has, and those.
    closureInfo =
      { rootPaths }:
      runCommand "closure-info"
        {
          exportReferencesGraph = lib.concatLists (
            lib.imap0 (index: path: [
              "closure-${toString index}"
              path
            ]) rootPaths
          );
        }
        ''
          mkdir $out
          cat closure-* >$out/registration
          while read -r path; do
            echo "$path"
            read -r deriver
            read -r count
            for ((; count > 0; count--)); do read -r reference; done
          done <$out/registration | sort -u >$out/store-paths
        '';
    startVM =
      config:
      runCommand "vm-${config.system.name}"
        {
          text = startScript config;
          passAsFile = [ "text" ];
          passthru.text = startScript config;
        }
        ''
          mkdir -p $out/bin
          cp $textPath $out/bin/run-${config.system.name}-vm
          chmod +x $out/bin/run-${config.system.name}-vm
        '';
    python3 = {
      outPath = "/usr";
      sitePackages = "lib/python3/site-packages";
      withPackages = _: host;
    };
    bash = {
      outPath = "";
    };
    makeWrapper = host;
    installShellFiles = host;
    mmdebstrap = host;
    qemu = host;
    headscale = host;
    e2fsprogs = host;
    erofs-utils = host;
    gnutar = host;
    fakeroot = host;
    socat = host;
    tesseract = host;
    qemu_test = host;
    firecracker.outPath = "/nix/store/firecracker";
    cloud-hypervisor.outPath = "/nix/store/cloud-hypervisor";
  };
in
pkgs
