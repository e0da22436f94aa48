# Tests of a tailnet of NixOS machines: a headscale server and its clients. Each is there in
# Python and in Starlark: nix-build -A module-smoke.python -A four-machines.starlark.
{
  pkgs ? import <nixpkgs> { },
  attest ? import ../../. { inherit pkgs; },
}:
let
  inherit (pkgs) lib;

  # Of the server, whose clients trust nobody else.
  certificate =
    pkgs.runCommand "headscale-certificate"
      {
        nativeBuildInputs = [ pkgs.openssl ];
      }
      ''
        mkdir $out
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj /CN=control \
          -addext subjectAltName=DNS:control -keyout $out/control.key -out $out/control.pem
      '';

  anything = {
    acls = [
      {
        action = "accept";
        src = [ "*" ];
        dst = [ "*:*" ];
      }
    ];
  };

  control = {
    services.headscale = {
      enable = true;
      address = "0.0.0.0";
      port = 443;
      settings = {
        server_url = "https://control";
        tls_cert_path = "${certificate}/control.pem";
        tls_key_path = "${certificate}/control.key";
        dns = {
          magic_dns = false;
          override_local_dns = false;
          base_domain = "tailnet.example";
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
    environment.etc."control.pem".source = "${certificate}/control.pem";
    environment.etc."headscale/policy.json" = {
      mode = "0644"; # a file, which a test replaces
      text = builtins.toJSON anything;
    };
  };

  client = {
    services.tailscale = {
      enable = true;
      extraDaemonFlags = [ "--no-logs-no-support" ];
    };
    security.pki.certificateFiles = [ "${certificate}/control.pem" ];
  };

  test =
    name: clients:
    let
      of =
        language: script:
        attest.makeTest (
          {
            name = "headscale-${name}-${language}";
            nodes = {
              inherit control;
            }
            // lib.genAttrs clients (_: client);
            memorySize = 1024;
          }
          // script
        );
    in
    {
      python = of "python" { testScript = ./. + "/${name}.py"; };
      starlark = of "starlark" { test = ./. + "/${name}.star"; };
    };
in
lib.mapAttrs test {
  module-smoke = [ ];
  cli-integration = [ "alice" ];
  policy-reload = [
    "alice"
    "bob"
  ];
  three-machines = [
    "alice"
    "bob"
  ];
  four-machines = [
    "alice"
    "bob"
    "carol"
  ];
}
