# A test of NixOS machines, on any backend: a derivation that runs it, with .driver,
# .driverInteractive, .vms, .rootfsImages, .storeImage, .snapshots, .nodes and .config.
# docs/nix.md describes the arguments.
{
  pkgs,
  lib ? pkgs.lib,
  attest ? pkgs.attest,
}:
{
  name,
  nodes ? { },
  testScript ? null, # Python: a string, a path, or a function of { nodes }
  test ? null, # Starlark: the same
  containers ? { }, # refused by name
  backend ? "qemu",
  vlans ? [ 1 ], # of nodes that do not set testing.vlans
  globalTimeout ? 3600,
  memorySize ? if backend == "qemu" then 1024 else 256,
  vcpus ? 1,
  splitStore ? false,
  hugePages ? false,
  entropy ? true,
  usePrebuiltSnapshots ? false,
  enableNetwork ? true,
  extraDriverArgs ? [ ],
  extraPythonPackages ? (_: [ ]),
  enableOCR ? false,
  skipCheck ? false,
  debugBoot ? false,
  specialArgs ? { },
  defaults ? { },
  extraPackages ? [ ], # programs that the test runs on the host
  preScript ? "", # of the shell of the build, before the test
  firecrackerPackage ? pkgs.firecracker,
  cloudHypervisorPackage ? pkgs.cloud-hypervisor,
  passthru ? { },
  meta ? { },
}@args:
let
  plan = import ./plan.nix { inherit lib; };
  microVM = backend != "qemu";

  backends = [
    "qemu"
    "firecracker"
    "cloud-hypervisor"
  ];

  # What makes no sense is refused before anything is evaluated.
  checked =
    lib.throwIf (backend == "nspawn" || containers != { })
      "attest: test ${name}: containers (systemd-nspawn) are not supported; a node is a machine on ${lib.concatStringsSep ", " backends}"
      lib.throwIfNot
      (lib.elem backend backends)
      "attest: test ${name}: unknown backend \"${backend}\"; want ${lib.concatStringsSep ", " backends}"
      lib.throwIfNot
      ((testScript == null) != (test == null))
      "attest: test ${name}: give either testScript (Python) or test (Starlark)"
      lib.throwIf
      (nodes == { })
      "attest: test ${name}: it has no nodes"
      lib.throwIf
      (hugePages && backend != "firecracker")
      "attest: test ${name}: hugePages is for firecracker"
      lib.throwIf
      (!entropy && backend != "firecracker")
      "attest: test ${name}: entropy = false is for firecracker; a machine on ${backend} has a source of random numbers always"
      lib.throwIf
      (splitStore && !microVM)
      "attest: test ${name}: splitStore is for firecracker and cloud-hypervisor; a machine on qemu has its store as an image anyway";

  number = plan.numbers nodes;

  evaluated = lib.mapAttrs (
    nodeName: module:
    import ./eval-node.nix {
      inherit
        pkgs
        lib
        backend
        specialArgs
        ;
      modules = [
        module
        defaults
        {
          networking.hostName = lib.mkDefault nodeName;
          testing = {
            nodeNumber = number.${nodeName};
            vlans = if enableNetwork then lib.mkDefault vlans else lib.mkForce [ ];
            splitStoreImage = splitStore;
            hostsEntries = plan.hosts networks nodeName;
            agent = lib.mkDefault (attest.agent or null);
          };
          boot.kernelParams = lib.optional debugBoot "systemd.log_level=debug";
        }
        (if microVM then { } else ./modules/qemu.nix)
        (
          if microVM then
            { }
          else
            {
              virtualisation = {
                memorySize = lib.mkDefault memorySize;
                cores = lib.mkDefault vcpus;
              };
            }
        )
      ];
    }
  ) nodes;

  configs = lib.mapAttrs (_: node: node.config) evaluated;
  networks = lib.mapAttrs (_: config: { inherit (config.testing) vlans; }) configs;

  storeImage = import ./make-shared-store-image.nix {
    inherit pkgs lib;
    name = "attest-store-${name}";
    systems = map (config: config.system.build.toplevel) (lib.attrValues configs);
  };

  rootfsImages = lib.mapAttrs (
    nodeName: config:
    import (if splitStore then ./make-rootfs-minimal.nix else ./make-rootfs.nix) {
      inherit pkgs lib config;
      name = "attest-root-${nodeName}";
    }
  ) configs;

  # On a PC small VMMs take an uncompressed kernel, and elsewhere what the kernel's build makes.
  kernelImage =
    { boot, system, ... }:
    let
      inherit (boot.kernelPackages) kernel;
    in
    if pkgs.stdenv.hostPlatform.isx86 then
      "${kernel.dev}/vmlinux"
    else
      "${kernel}/${system.boot.loader.kernelFile}";

  machine =
    nodeName: config:
    {
      name = nodeName;
      inherit backend;
      inherit (config.testing) vlans;
    }
    // (
      if microVM then
        {
          kernel_image_path = kernelImage config;
          initrd_path = "${config.system.build.initialRamdisk}/${config.system.boot.loader.initrdFile}";
          kernel_boot_args = lib.concatStringsSep " " (
            config.boot.kernelParams ++ [ "init=${config.system.build.toplevel}/init" ]
          );
          rootfs_path = "${rootfsImages.${nodeName}}/rootfs.ext4";
          mem_size_mib = memorySize;
          vcpu_count = vcpus;
          vsock_port = config.testing.vsockPort;
        }
        // lib.optionalAttrs splitStore { store_image_path = "${storeImage}/store.erofs"; }
      else
        {
          start_command = "${config.system.build.vm}/bin/run-${config.system.name}-vm";
        }
    )
    // lib.optionalAttrs (backend == "firecracker") (
      {
        firecracker_bin = "${firecrackerPackage}/bin/firecracker";
        inherit entropy;
      }
      // lib.optionalAttrs hugePages { huge_pages = "2M"; }
    )
    // lib.optionalAttrs (backend == "cloud-hypervisor") {
      cloud_hypervisor_bin = "${cloudHypervisorPackage}/bin/cloud-hypervisor";
    };

  started =
    nodeName: config:
    machine nodeName config
    // lib.optionalAttrs usePrebuiltSnapshots {
      snapshot_path = "${snapshots.${nodeName}}/${nodeName}";
    };

  machines = lib.mapAttrsToList started configs;

  hostPackages = lib.optional (backend == "qemu") pkgs.qemu_test;

  # One snapshot a machine, of its boot alone.
  snapshots = lib.mapAttrs (
    nodeName: config:
    import ./make-snapshot.nix {
      inherit pkgs lib attest;
      name = nodeName;
      machine = machine nodeName config;
      packages = hostPackages;
    }
  ) configs;

  script =
    given: suffix:
    let
      text = if lib.isFunction given then given { nodes = configs; } else given;
    in
    if builtins.isPath text then text else pkgs.writeText "${name}${suffix}" text;

  driver =
    extraArgs:
    import ./driver.nix {
      inherit
        pkgs
        lib
        attest
        name
        machines
        globalTimeout
        extraPythonPackages
        enableOCR
        skipCheck
        ;
      script = if test != null then script test ".star" else script testScript ".py";
      vlans = plan.vlans networks;
      extraDriverArgs = extraDriverArgs ++ extraArgs;
      packages = extraPackages ++ hostPackages;
    };

  run = import ./run.nix {
    inherit
      pkgs
      lib
      name
      meta
      preScript
      ;
    driver = driver [ ];
    kvm = true;
    passthru = passthru // {
      driver = driver [ ];
      driverInteractive = driver [ "--interactive" ];
      vms = lib.mapAttrs (_: config: config.system.build.vm) (if microVM then { } else configs);
      rootfsImages = if microVM then rootfsImages else { };
      storeImage = if splitStore then storeImage else null;
      inherit snapshots;
      nodes = configs;
      config = {
        inherit machines globalTimeout;
        vlans = plan.vlans networks;
      };
      override = new: import ./test.nix { inherit pkgs lib attest; } (args // new);
    };
  };
in
checked run
