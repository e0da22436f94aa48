# As much of nixpkgs as nix/ uses, made of this host's programs.
{
  lib,
  # A directory with bin/attest and bin/attest-agent.
  attestDir ? "/nonexistent",
  # The text of a start script, of a machine's configuration.
  startScript ? (_: "exit 1\n"),
  # What it is for: another one's packages can be evaluated, and not be built.
  system ? builtins.currentSystem,
  # Where the host's Go is.
  goRoot ? "/usr/local/go",
  # What is to be another than here, as an overlay.
  overlay ? (_: _: { }),
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
        inherit system;
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

  # A program of attest, in Go, with the host's Go and what that has in its caches. What the
  # program is made of comes from the modules of vendorHash, which Nix compares.
  buildGoModule =
    {
      pname,
      version,
      src,
      vendorHash,
      nativeBuildInputs ? [ ],
      env ? { },
      outputs ? [ "out" ],
      buildPhase,
      installPhase,
      doCheck ? true,
      passthru ? { },
      meta ? { },
    }@given:
    assert !doCheck && nativeBuildInputs != [ ];
    let
      name = "${pname}-${version}";
      builder =
        attributes: script:
        derivation (
          attributes
          // {
            inherit system;
            builder = "/bin/bash";
            inherit src;
            PATH = "${goRoot}/bin:${path}";
            args = [
              "-euo"
              "pipefail"
              "-c"
              ''
                . ${./stdenv.sh}
                export TMPDIR=$NIX_BUILD_TOP HOME=$NIX_BUILD_TOP
                cp -r $src source
                chmod -R u+w source
                cd source
                ${script}
                exit 0
              ''
            ];
          }
        );
      goModules =
        builder
          {
            name = "${name}-go-modules";
            outputHashMode = "recursive";
            outputHash = vendorHash;
            impureEnvVars = [
              "GOMODCACHE"
              "GOPROXY"
              "GOSUMDB"
            ];
          }
          ''
            export GOCACHE=$TMPDIR/go-cache
            go mod vendor
            cp -r vendor $out
          '';
    in
    builder
      (
        env
        // {
          inherit name outputs;
          GOPROXY = "off";
          GOFLAGS = "-mod=vendor";
          # Not a path of the store: nothing depends on what is in there.
          GOCACHE = builtins.getEnv "GOCACHE";
        }
      )
      ''
        cp -r ${goModules} vendor
        ${buildPhase}
        ${installPhase}
      ''
    // passthru
    // {
      inherit version meta given;
    };

  callPackage =
    file: given:
    let
      f = import file;
      wanted = builtins.intersectAttrs (builtins.functionArgs f) (pkgs // { inherit lib; });
      make = args: f args // { override = new: make (args // new); };
    in
    make (wanted // given);

  pkgs = here // overlay pkgs here;
  here = {
    inherit
      lib
      runCommand
      callPackage
      buildGoModule
      ;
    path = ./nixpkgs;
    stdenv.hostPlatform = {
      isx86 = system == "x86_64-linux";
      inherit system;
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
    mkShell =
      { inputsFrom, packages }: runCommand "shell" { inputs = inputsFrom ++ packages; } "touch $out";
    nixfmt-tree = runCommand "nixfmt" { } "mkdir $out";
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
    mmdebstrap.outPath = "/nix/store/mmdebstrap";
    qemu = host;
    openssl = host;
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
