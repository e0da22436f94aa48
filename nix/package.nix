# attest: a static executable, with the agent of its guests inside and beside it.
{
  lib,
  buildGoModule,
  installShellFiles,
  makeWrapper,
  e2fsprogs,
  erofs-utils,
  mmdebstrap,
  python3,
  qemu,
  tesseract,
  version ? "0-dev",
  withDebian ? false, # also build Debian images
  tests ? { }, # that nix flake check runs
}:
buildGoModule {
  pname = "attest";
  inherit version;
  src = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../LICENSE
      ../cmd
      ../go.mod
      ../go.sum
      ../internal
      ../scripts
      (lib.fileset.fileFilter (file: file.hasExt "go") ../.)
    ];
  };
  # Of "go mod vendor", as a test of the repository computes it.
  vendorHash = lib.fileContents ./vendor.hash;

  nativeBuildInputs = [
    installShellFiles
    makeWrapper
  ];
  env.CGO_ENABLED = 0;
  buildPhase = ''
    runHook preBuild
    mkdir -p $out/bin
    VERSION=${version} sh scripts/build $out/bin/attest
    runHook postBuild
  '';
  # The tests boot machines.
  doCheck = false;
  installPhase = ''
    runHook preInstall
    mkdir -p $agent/bin
    mv $out/bin/attest-agent $agent/bin/
    ln -s attest $out/bin/nixos-test-driver
    ln -s attest $out/bin/generate-driver-symbols
    installShellCompletion --cmd attest \
      --bash <($out/bin/attest completion bash) \
      --fish <($out/bin/attest completion fish) \
      --zsh <($out/bin/attest completion zsh)
    $out/bin/attest man $TMPDIR/man
    installManPage $TMPDIR/man/*
    # argv[0] says what is wanted, so the wrapper keeps it.
    wrapProgram $out/bin/attest --inherit-argv0 --suffix PATH : ${
      lib.makeBinPath (
        [
          e2fsprogs
          erofs-utils
          python3
          qemu
          tesseract
        ]
        ++ lib.optional withDebian mmdebstrap
      )
    }
    runHook postInstall
  '';
  outputs = [
    "out"
    "agent"
  ];
  passthru = { inherit tests; };
  meta = {
    description = "Integration tests on real virtual machines";
    license = lib.licenses.mit;
    mainProgram = "attest";
    platforms = [
      "x86_64-linux"
      "aarch64-linux"
    ];
  };
}
