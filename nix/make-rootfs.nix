# The root of a machine on a microVM, with its whole store: $out/rootfs.ext4.
{
  pkgs,
  lib ? pkgs.lib,
  config,
  name ? "attest-root-${config.system.name}",
  freeSpace ? 512, # MiB
  withStore ? true,
}:
let
  toplevel = config.system.build.toplevel;
  closure = pkgs.closureInfo { rootPaths = [ toplevel ]; };
in
pkgs.runCommand name
  {
    nativeBuildInputs = [
      pkgs.e2fsprogs
      pkgs.fakeroot
    ];
    passthru = {
      inherit closure;
    };
  }
  ''
    mkdir -p root/{bin,boot,dev,etc,home,lib,mnt,nix/store,proc,root,run,sbin,sys,tmp,usr/bin,var} $out
    chmod 1777 root/tmp
    chmod 700 root/root
    ln -s ${toplevel}/init root/sbin/init
    ${
      if withStore then
        ''
          xargs -I % cp -a --reflink=auto % root/nix/store/ <${closure}/store-paths
          cp ${closure}/registration root/nix-path-registration
        ''
      else
        "mkdir -p root/nix/.ro-store root/nix/.rw-store/{upper,work}"
    }
    used=$(du --summarize --block-size=1M root | cut -f1)
    # A sixteenth for the file system itself.
    truncate -s $((used + used / 16 + ${toString freeSpace}))M $out/rootfs.ext4
    # No random identity, and the times of the store.
    find root -exec touch --no-dereference --date=@1 {} +
    export SOURCE_DATE_EPOCH=1
    fakeroot mkfs.ext4 -q -L nixos -U 6a7465d6-93ac-4b1a-9c0e-726f6f740000 \
      -E hash_seed=6a7465d6-93ac-4b1a-9c0e-726f6f740001,root_owner=0:0 -d root $out/rootfs.ext4
  ''
