# A machine on QEMU that attest can save: the store is an image, since a mounted 9p file
# system cannot be saved, and its cards are on the lab's networks.
{ config, lib, ... }:
let
  cfg = config.testing;
  plan = import ../plan.nix { inherit lib; };
in
{
  virtualisation = {
    useNixStoreImage = lib.mkDefault true;
    sharedDirectories = lib.mkForce { };
    qemu.options = lib.concatMap (vlan: [
      ''-netdev vde,id=vlan${toString vlan},sock="$QEMU_VDE_SOCKET_${toString vlan}"''
      "-device virtio-net-pci,netdev=vlan${toString vlan},mac=${plan.mac "qemu" vlan cfg.nodeNumber}"
    ]) cfg.vlans;
  };
}
