# attest's packages, built by the host's Go, with tools that are this host's.
{
  goRoot,
  nixpkgsLib ? "",
}:
let
  stub = import ../../../nix/tests/lib.nix;
  # The sets of files of nixpkgs' lib want a newer Nix than Debian's.
  older = if builtins ? readFileType then { } else { inherit (stub) fileset; };
  lib = if nixpkgsLib == "" then stub else import nixpkgsLib // older;
  pkgs = import ../../../nix/tests/pkgs.nix {
    inherit lib goRoot;
    # Each is a package of its own, so that one sees which of them attest finds.
    overlay =
      pkgs: prev:
      let
        tool =
          name: programs:
          pkgs.runCommand name { } ''
            mkdir -p $out/bin
            for program in ${programs}; do ln -s $(command -v $program) $out/bin/; done
          '';
        python3 = tool "python3" "python3" // {
          inherit (prev.python3) sitePackages;
          withPackages = _: python3;
        };
      in
      {
        inherit python3;
        e2fsprogs = tool "e2fsprogs" "mkfs.ext4";
        erofs-utils = tool "erofs-utils" "fsck.erofs";
        qemu = tool "qemu" "qemu-system-x86_64";
        qemu_test = tool "qemu_test" "qemu-system-x86_64";
        tesseract = tool "tesseract" "tesseract";
      };
  };
  ours = import ../../../default.nix { inherit pkgs; };
in
ours
// {
  # Modules are compared with what go.sum says of them, and all of them with their hash.
  wrongHash = pkgs.buildGoModule (
    ours.attest.given // { vendorHash = "sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="; }
  );
}
