# The store of one machine as a read-only disk: $out/store.erofs.
{
  pkgs,
  lib ? pkgs.lib,
  config,
  name ? "attest-store-${config.system.name}",
}:
import ./make-shared-store-image.nix {
  inherit pkgs lib name;
  systems = [ config.system.build.toplevel ];
}
