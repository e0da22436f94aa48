# What a NixOS machine needs for attest: the backdoor on its console or on vsock,
# attest's agent from the store, no wait for a network that nobody serves, and the
# kernel modules of all VMMs. nix/make-test.nix sets the options.
{
  config,
  lib,
  options,
  pkgs,
  ...
}:
let
  cfg = config.testing;
  plan = import ../plan.nix { inherit lib; };
  inherit (pkgs.stdenv.hostPlatform) isx86;
  # Firecracker's is that of a PC on every processor; the others' is the platform's.
  serial = if isx86 || cfg.backend == "firecracker" then "ttyS0" else "ttyAMA0";
  microVM = cfg.backend != "qemu";

  # Newer releases of NixOS take settings by section, older ones the text of one.
  sections =
    structured: option: settings:
    if structured then
      { ${option} = settings; }
    else
      { extraConfig = lib.concatMapStrings (lib.generators.toKeyValue { }) (lib.attrValues settings); };

  # QEMU has a card of its own before those of the lab.
  firstCard = if microVM then 0 else 1;

  shell = ''
    export USER=root HOME=/root DISPLAY=:0.0 PAGER=
    if [ -e /etc/profile ]; then
      set +u
      . /etc/profile
    fi
    cd /tmp
  '';
in
{
  options.testing = {
    backend = lib.mkOption {
      type = lib.types.enum [
        "qemu"
        "firecracker"
        "cloud-hypervisor"
      ];
      default = "qemu";
      description = "The VMM that runs this machine.";
    };
    nodeNumber = lib.mkOption {
      type = lib.types.int;
      default = 1;
      description = "The number of this machine in its lab, from 1. Its addresses end in it.";
    };
    vlans = lib.mkOption {
      type = lib.types.listOf lib.types.int;
      default = [ 1 ];
      description = "The networks that this machine has a card on: eth1, eth2 and so on, on a microVM eth0 and so on.";
    };
    hostsEntries = lib.mkOption {
      type = lib.types.lines;
      default = "";
      description = "Lines for /etc/hosts: the machines of the lab.";
    };
    backdoor = lib.mkOption {
      type = lib.types.bool;
      default = !microVM;
      description = "A root shell on /dev/hvc0, by which attest puts its agent into the machine.";
    };
    vsockBackdoor = lib.mkOption {
      type = lib.types.bool;
      default = microVM;
      description = "A root shell for each connection to a vsock port.";
    };
    vsockPort = lib.mkOption {
      type = lib.types.port;
      default = 1234;
      description = "The port of the backdoor on vsock.";
    };
    splitStoreImage = lib.mkOption {
      type = lib.types.bool;
      default = false;
      description = "The store is a second, read-only disk (erofs), and the root has none of it.";
    };
    agent = lib.mkOption {
      type = lib.types.nullOr lib.types.package;
      default = pkgs.attest.agent or null;
      description = "attest's agent, so that nothing is copied into the machine when it boots. null: it is copied.";
    };
  };

  config = {
    # attest takes this program if it is the agent that it would bring, and copies its own otherwise.
    environment.systemPackages = lib.optional (cfg.agent != null) cfg.agent;

    systemd = lib.mkMerge [
      (sections (options.systemd ? settings) "settings" {
        Manager = {
          ShowStatus = false;
          DefaultTimeoutStartSec = 300;
          DefaultDeviceTimeoutSec = 300;
        };
      })
      {
        services.backdoor = lib.mkIf cfg.backdoor {
          description = "Root shell for tests, on a console";
          wantedBy = [ "multi-user.target" ];
          requires = [ "dev-hvc0.device" ];
          after = [
            "dev-hvc0.device"
            "dev-${serial}.device"
          ];
          script = shell + ''
            exec </dev/hvc0 >/dev/hvc0
            until exec 2>/dev/${serial}; do sleep 0.1; done # which a getty may be closing
            stty -F /dev/hvc0 raw -echo
            echo "Spawning backdoor root shell..."
            PS1= exec ${pkgs.bash}/bin/bash --norc /dev/hvc0
          '';
          serviceConfig.KillSignal = "SIGHUP";
        };

        # The same as attest does through the backdoor, which finds the agent there already.
        services.attest-agent = lib.mkIf (cfg.backdoor && cfg.agent != null) {
          description = "attest's agent";
          wantedBy = [ "sysinit.target" ];
          after = [ "systemd-tmpfiles-setup-dev.service" ];
          before = [
            "sysinit.target"
            "backdoor.service"
          ];
          unitConfig.DefaultDependencies = false;
          script = ''
            mkdir -p -m 700 /run/attest
            rm -f /run/attest/agent
            cp -p ${cfg.agent}/bin/attest-agent /run/attest/agent
            chmod 700 /run/attest/agent
            sum=$(sha256sum </run/attest/agent)
            exec -a attest-install /run/attest/agent "''${sum%% *}"
          '';
          serviceConfig = {
            Type = "oneshot";
            RemainAfterExit = true;
          };
        };

        # socat forks for each connection: a machine that was restored gets a new one.
        services.vsock-backdoor = lib.mkIf cfg.vsockBackdoor {
          description = "Root shell for tests, on vsock";
          wantedBy = [ "multi-user.target" ];
          serviceConfig = {
            KillSignal = "SIGHUP";
            Restart = "always";
            ExecStart =
              "${pkgs.socat}/bin/socat VSOCK-LISTEN:${toString cfg.vsockPort},fork,reuseaddr "
              + "EXEC:${
                pkgs.writeShellScript "vsock-shell" (
                  shell
                  + ''
                    echo "Spawning backdoor root shell..."
                    PS1= exec ${pkgs.bash}/bin/bash --norc 2>/dev/console
                  ''
                )
              }";
          };
        };

        services."serial-getty@${serial}".enable = false;
        services."serial-getty@hvc0".enable = false;
      }
    ];

    # The plan of addresses. Nobody serves DHCP unless asked, and a client that waits for
    # it costs half a minute of each boot.
    networking = {
      useDHCP = false;
      dhcpcd.enable = false;
      usePredictableInterfaceNames = false;
      defaultGateway = lib.mkOverride 150 null;
      nameservers = lib.mkOverride 150 [ ];
      firewall.enable = lib.mkDefault false;
      extraHosts = cfg.hostsEntries;
      interfaces = lib.listToAttrs (
        lib.imap0 (
          index: vlan:
          lib.nameValuePair "eth${toString (firstCard + index)}" {
            ipv4.addresses = [
              {
                address = plan.ipv4 vlan cfg.nodeNumber;
                prefixLength = 24;
              }
            ];
            ipv6.addresses = [
              {
                address = plan.ipv6 vlan cfg.nodeNumber;
                prefixLength = 64;
              }
            ];
          }
        ) cfg.vlans
      );
    };

    boot.kernelParams = [
      "console=${serial}"
      "panic=1"
      "boot.panic_on_fail"
    ]
    # On a busy host the timer's interrupts come late to a guest that is emulated, and a kernel that
    # tests them panics.
    ++ lib.optional (!microVM && isx86) "no_timer_check"
    ++ lib.optionals (cfg.backend == "firecracker" && isx86) [
      # Firecracker ends when the guest resets itself by the keyboard's controller.
      "reboot=k"
      "i8042.noaux"
    ];
    boot.kernelModules = lib.optionals microVM [ "vmw_vsock_virtio_transport" ];
    boot.initrd.availableKernelModules = [
      "virtio_blk"
      "virtio_console"
      "virtio_net"
      "virtio_pci"
      "virtio_rng"
      "erofs"
      "overlay"
    ]
    ++ lib.optionals microVM [
      "virtio_mmio"
      "vmw_vsock_virtio_transport"
    ];
    boot.kernel.sysctl = {
      "kernel.hung_task_timeout_secs" = 600;
      "vm.panic_on_oom" = lib.mkDefault 2;
    };
    boot.consoleLogLevel = lib.mkDefault 7;
    boot.loader.grub.enable = lib.mkIf microVM false;

    fileSystems = lib.mkIf microVM (
      {
        "/" = {
          device = "/dev/vda";
          fsType = "ext4";
        };
      }
      // lib.optionalAttrs cfg.splitStoreImage {
        "/nix/.ro-store" = {
          device = "/dev/vdb";
          fsType = "erofs";
          options = [ "ro" ];
          neededForBoot = true;
        };
        "/nix/store" = {
          overlay = {
            lowerdir = [ "/nix/.ro-store" ];
            upperdir = "/nix/.rw-store/upper";
            workdir = "/nix/.rw-store/work";
          };
          neededForBoot = true;
        };
      }
    );

    services.journald = sections (options.services.journald ? settings) "settings" {
      Journal = {
        ForwardToConsole = true;
        TTYPath = "/dev/${serial}";
        MaxLevelConsole = "debug";
      };
    };
    services.logrotate.enable = lib.mkOverride 150 false;
    users.users.root.initialHashedPassword = lib.mkOverride 150 "";
    documentation.enable = lib.mkDefault false;
  };
}
