# The store of all machines of a lab as one read-only disk: $out/store.erofs. Its
# entries are those below /nix/store.
{
  pkgs,
  lib ? pkgs.lib,
  name,
  systems, # store paths, whose closures are in the image
}:
let
  closure = pkgs.closureInfo { rootPaths = systems; };
in
pkgs.runCommand name
  {
    nativeBuildInputs = [
      pkgs.erofs-utils
      pkgs.gnutar
    ];
    passthru = {
      inherit closure;
    };
  }
  ''
    mkdir $out
    # A file system of the same content is the same file: no random identity, no time of now.
    tar --create --absolute-names --verbatim-files-from --transform 'flags=rSh;s|${builtins.storeDir}/||' \
      --sort=name --mtime=@1 --owner=0 --group=0 --numeric-owner --files-from ${closure}/store-paths \
      | mkfs.erofs --quiet --force-uid=0 --force-gid=0 -T 0 -U 6a7465d6-93ac-4b1a-9c0e-617474657374 --tar=f $out/store.erofs
  ''
