# A tailnet of NixOS machines: a headscale server and clients, as one test in Python
# and in Starlark. nix-build -A python, -A starlark, or -A policy (four machines).
{
  pkgs ? import <nixpkgs> { },
  attest ? import ../../. { inherit pkgs; },
}:
let
  domain = "control.example.org";
  policy = {
    acls = [
      {
        action = "accept";
        src = [ "*" ];
        dst = [ "*:*" ];
      }
    ];
  };

  control =
    { pkgs, lib, ... }:
    {
      services.headscale = {
        enable = true;
        address = "0.0.0.0";
        port = 8080;
        settings = {
          server_url = "http://control:8080";
          dns = {
            magic_dns = false;
            override_local_dns = false;
            base_domain = domain;
          };
          # Nothing here is reachable from anywhere else: the server relays by itself.
          derp.server = {
            enabled = true;
            region_id = 999;
            stun_listen_addr = "0.0.0.0:3478";
          };
          derp.urls = [ ];
          policy.path = "/etc/headscale/policy.json";
        };
      };
      environment.etc."headscale/policy.json" = {
        mode = "0644"; # a file, which a test replaces
        text = builtins.toJSON policy;
      };
      environment.systemPackages = [ pkgs.headscale ];
    };

  client = {
    services.tailscale = {
      enable = true;
      extraDaemonFlags = [ "--no-logs-no-support" ];
    };
  };

  test =
    args:
    attest.makeTest (
      {
        nodes = {
          inherit control;
          alice = client;
          bob = client;
        };
        memorySize = 1024;
      }
      // args
    );
in
{
  python = test {
    name = "headscale-python";
    testScript = ./test.py;
  };
  starlark = test {
    name = "headscale-starlark";
    test = ./test.star;
  };
  policy = test {
    name = "headscale-policy";
    nodes = {
      inherit control;
      alice = client;
      bob = client;
      carol = client;
    };
    test = ./policy.star;
  };
}
