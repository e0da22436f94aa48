# Numbers, addresses and names of the machines of a lab, by the plan of
# docs/networks.md. nodes is { NAME = { vlans = [ 1 ]; }; }.
{ lib }:
let
  hex = n: lib.fixedWidthString 2 "0" (lib.toLower (lib.toHexString n));
in
rec {
  # The number of each machine: from 1, in the order of names.
  numbers =
    nodes:
    lib.listToAttrs (lib.imap1 (number: name: lib.nameValuePair name number) (lib.attrNames nodes));

  ipv4 = vlan: number: "192.168.${toString vlan}.${toString number}";
  ipv6 = vlan: number: "2001:db8:${toString vlan}::${toString number}";

  # The address of a card, which says to the guest which network it is on.
  mac =
    backend: vlan: number:
    if backend == "qemu" then
      "52:54:00:12:${hex vlan}:${hex number}"
    else
      "aa:fc:00:${hex vlan}:${hex number}:01";

  # The networks of a lab: those that a machine is on.
  vlans =
    nodes:
    lib.unique (lib.sort (a: b: a < b) (lib.concatMap (node: node.vlans) (lib.attrValues nodes)));

  # What the machine self has in /etc/hosts: its own name, by the addresses of its first
  # network, and those of all others, of the networks that it shares with them first.
  hosts =
    nodes: self:
    let
      number = numbers nodes;
      own = nodes.${self}.vlans;
      position =
        vlan: list: if list == [ ] || lib.head list == vlan then 0 else 1 + position vlan (lib.tail list);
      rank = vlan: position vlan own;
      seen =
        name: vlans: if name == self then lib.take 1 vlans else lib.sort (a: b: rank a < rank b) vlans;
    in
    lib.concatStrings (
      lib.concatLists (
        lib.mapAttrsToList (
          name: node:
          map (vlan: ''
            ${ipv4 vlan number.${name}} ${name}
            ${ipv6 vlan number.${name}} ${name}
          '') (seen name node.vlans)
        ) nodes
      )
    );
}
