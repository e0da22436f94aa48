# What the functions and modules of nix/ evaluate to, for nix_test.go: as JSON.
{
  # nixpkgs' lib, if there is one.
  nixpkgsLib ? "",
}:
let
  stub = import ./lib.nix;
  # The sets of files of nixpkgs' lib want a newer Nix than Debian's.
  older = if builtins ? readFileType then { } else { inherit (stub) fileset; };
  lib = if nixpkgsLib == "" then stub else import nixpkgsLib // older;
  pkgsOf = system: import ./pkgs.nix { inherit lib system; };
  pkgs = pkgsOf "x86_64-linux";
  arm = pkgsOf "aarch64-linux";
  makeTest = import ../test.nix { inherit pkgs lib; };

  nodes = {
    server = { };
    client-1 = {
      testing.vlans = [
        1
        2
      ];
    };
    alone = {
      testing.vlans = [ ];
    };
  };
  base = {
    name = "t";
    inherit nodes;
    testScript = "start_all()\n";
  };

  # What a test came to, without its store paths' contents.
  shown = test: {
    inherit (test) config name meta;
    mine = test.mine or "";
    features = test.attributes.requiredSystemFeatures;
    script = test.attributes.script;
    driver = test.driver.attributes.script;
    text = test.driver.script.text or "";
    interactive = test.driverInteractive.attributes.script;
    machines = lib.mapAttrs (_: config: {
      inherit (config.networking)
        extraHosts
        interfaces
        useDHCP
        defaultGateway
        ;
      dhcpcd = config.networking.dhcpcd.enable;
      inherit (config.boot) kernelParams kernelModules;
      modules = config.boot.initrd.availableKernelModules;
      inherit (config) fileSystems;
      units = lib.mapAttrs (
        _: unit: removeAttrs unit [ "serviceConfig" ] // { exec = unit.serviceConfig.ExecStart or ""; }
      ) config.systemd.services;
      qemu = config.virtualisation.qemu.options or [ ];
      memory = config.virtualisation.memorySize or 0;
      cores = config.virtualisation.cores or 0;
      packages = map toString config.environment.systemPackages;
      firewall = config.networking.firewall.enable;
      journal = config.services.journald.settings.Journal.TTYPath;
    }) test.nodes;
    vms = lib.mapAttrs (_: toString) test.vms;
    rootfs = lib.mapAttrs (_: image: image.attributes.script) test.rootfsImages;
    snapshots = lib.mapAttrs (_: snapshot: snapshot.attributes.script) test.snapshots;
  };

  ours = import ../. { inherit pkgs; };

  # As much of NixOS' test framework as the module meets: with an option for the
  # driver's package that tests may set, with one that is read-only, and without.
  framework = frameworkWith [
    (import ../modules/test.nix { inherit (ours) attest nixos-test-driver; })
  ];
  frameworkWith =
    imports: extra:
    let
      option = type: default: lib.mkOption { inherit type default; };
      inherit (lib) types;
      test = lib.evalModules {
        modules = imports ++ [
          extra
          {
            options = {
              name = option types.str "t";
              hostPkgs = option types.raw (pkgs // { nixos-test-driver = throw "NixOS' own driver"; });
              enableOCR = option types.bool false;
              extraPythonPackages = option types.raw (_: [ ]);
              extraDriverArgs = option types.raw [ ];
              globalTimeout = option types.int 3600;
              testScriptString = option types.str "start_all()";
              qemu.package = option types.raw pkgs.qemu_test;
              nodes = option types.raw (
                lib.mapAttrs
                  (name: vlans: {
                    system.name = name;
                    system.build.vm = "/nix/store/vm-${name}";
                    virtualisation.vlans = vlans;
                  })
                  {
                    client = [ 1 ];
                    server = [
                      1
                      2
                    ];
                  }
              );
            };
          }
        ];
      };
      node = test.config.nodeDefaults or test.config.defaults;
      value =
        content: # what mkDefault and mkForce are around
        content.content or content;
    in
    {
      driver = test.config.driver.attributes.script or test.config.driver.script;
      node = {
        useNixStoreImage = value node.virtualisation.useNixStoreImage;
        sharedDirectories = lib.length (lib.attrNames (value node.virtualisation.sharedDirectories));
        agent = map toString node.environment.systemPackages == [ (toString ours.attest.agent) ];
      };
    };
  packaged =
    readOnly:
    { config, hostPkgs, ... }:
    {
      options = {
        pythonTestDriverPackage = lib.mkOption {
          type = lib.types.raw;
          default = hostPkgs.nixos-test-driver;
          inherit readOnly;
        };
        driver = lib.mkOption { type = lib.types.raw; };
        nodeDefaults = lib.mkOption { type = lib.types.raw; };
      };
      config.driver.script =
        (config.pythonTestDriverPackage.override {
          inherit (config) enableOCR extraPythonPackages;
          qemu_pkg = config.qemu.package;
          enableNspawn = false;
        }).attributes.script;
    };

  flake = (import ../../flake.nix).outputs {
    self = { };
    nixpkgs = {
      inherit lib;
      legacyPackages = lib.genAttrs [
        "x86_64-linux"
        "aarch64-linux"
      ] pkgsOf;
    };
  };
  system = "x86_64-linux";
in
{
  qemu = shown (makeTest base);
  starlark = shown (
    makeTest (
      removeAttrs base [ "testScript" ]
      // {
        test = ./one.star;
        enableNetwork = false;
        globalTimeout = 60;
        memorySize = 640;
        vcpus = 2;
      }
    )
  );
  # By its name, a test to which an argument of makeTest is given. What belongs to microVMs alone
  # is compared with the same test on a microVM: with.
  arguments =
    let
      # Of these one can see whether they are there.
      pkgs = import ./pkgs.nix {
        inherit lib;
        system = "x86_64-linux";
        overlay = _: prev: {
          tesseract.outPath = "/nix/store/tesseract";
          python3 = prev.python3 // {
            withPackages = chosen: {
              outPath = "/nix/store/python3-with-${
                lib.concatStringsSep "-" (chosen {
                  yaml = "yaml";
                })
              }";
            };
          };
        };
      };
      makeTest = import ../test.nix { inherit pkgs lib; };
      onMicroVM.backend = "firecracker";
      of = args: shown (makeTest (base // args));
    in
    {
      names = lib.attrNames (builtins.functionArgs makeTest);
      without = of { };
      withoutOnMicroVM = of onMicroVM;
      given = lib.mapAttrs (_: of) {
        name.name = "another";
        nodes.nodes.only = { };
        testScript.testScript = "pass # another\n";
        test = {
          testScript = null;
          test = "def test_another(): pass";
        };
        backend = onMicroVM;
        vlans.vlans = [
          3
          4
        ];
        globalTimeout.globalTimeout = 61;
        memorySize.memorySize = 700;
        vcpus.vcpus = 3;
        splitStore = onMicroVM // {
          splitStore = true;
        };
        hugePages = onMicroVM // {
          hugePages = true;
        };
        entropy = onMicroVM // {
          entropy = false;
        };
        usePrebuiltSnapshots.usePrebuiltSnapshots = true;
        enableNetwork.enableNetwork = false;
        extraDriverArgs.extraDriverArgs = [ "--seed=7" ];
        extraPythonPackages.extraPythonPackages = ps: [ ps.yaml ];
        enableOCR.enableOCR = true;
        skipCheck.skipCheck = true;
        debugBoot.debugBoot = true;
        debugBootOnMicroVM = onMicroVM // {
          debugBoot = true;
        };
        specialArgs = {
          specialArgs.parameter = "a-parameter";
          defaults = { parameter, ... }: { boot.kernelParams = [ parameter ]; };
        };
        defaults.defaults.networking.firewall.enable = true;
        extraPackages.extraPackages = [ { outPath = "/nix/store/a-program"; } ];
        preScript.preScript = "export ATTEST_BOOT=cold";
        firecrackerPackage = onMicroVM // {
          firecrackerPackage.outPath = "/nix/store/another-vmm";
        };
        cloudHypervisorPackage = {
          backend = "cloud-hypervisor";
          cloudHypervisorPackage.outPath = "/nix/store/another-vmm";
        };
        passthru.passthru.mine = "mine";
        meta.meta.description = "a test";
      };
    };
  # What a node sets itself of the instrumentation's options.
  options =
    lib.mapAttrs
      (
        _: args:
        shown (
          makeTest (
            base
            // {
              backend = args.backend or "qemu";
              defaults.testing = removeAttrs args [ "backend" ];
            }
          )
        )
      )
      {
        agent.agent = null;
        backdoor.backdoor = false;
        vsockBackdoor.vsockBackdoor = true;
        vsockPort = {
          backend = "cloud-hypervisor";
          vsockPort = 77;
        };
      };
  # Memory and processors of a machine itself win, and so does a test that another one is made of.
  ofANode = shown (
    (makeTest (
      base
      // {
        memorySize = 640;
        vcpus = 2;
        defaults.virtualisation = {
          memorySize = 900;
          cores = 4;
        };
      }
    )).override
      { globalTimeout = 62; }
  );
  # The derivation of one machine's snapshot, of tests that differ.
  snapshotKeys =
    let
      key =
        attest: args:
        (import ../test.nix { inherit pkgs lib attest; } (base // { backend = "firecracker"; } // args))
        .snapshots.server.drvPath;
    in
    lib.mapAttrs (_: key pkgs.attest) {
      base = { };
      script.testScript = "pass\n";
      budget.globalTimeout = 60;
      memory.memorySize = 512;
      node.nodes = nodes // {
        server.boot.kernelParams = [ "quiet" ];
      };
      vmm.firecrackerPackage.outPath = "/nix/store/another";
    }
    // {
      attest = key (pkgs.attest // { outPath = "/nix/store/another-attest"; }) { };
    };
  firecracker = shown (
    makeTest (
      base
      // {
        backend = "firecracker";
        hugePages = true;
        entropy = false;
        memorySize = 384;
        vcpus = 2;
      }
    )
  );
  split = shown (
    makeTest (
      base
      // {
        backend = "cloud-hypervisor";
        splitStore = true;
        usePrebuiltSnapshots = true;
        extraDriverArgs = [ "--verbose" ];
      }
    )
  );
  # By backend, on the other processor.
  aarch64 =
    lib.genAttrs
      [
        "qemu"
        "firecracker"
        "cloud-hypervisor"
      ]
      (
        backend:
        shown (
          import ../test.nix {
            inherit lib;
            pkgs = arm;
          } (base // { inherit backend; })
        )
      );
  # What the flake's packages and checks are for.
  platforms = lib.mapAttrs (
    system: _:
    lib.unique (
      map (derivation: derivation.system) (
        lib.attrValues flake.packages.${system} ++ lib.attrValues flake.checks.${system}
      )
    )
  ) flake.packages;
  old = {
    qemu =
      (shown (
        import ../make-test.nix {
          inherit pkgs;
          inherit (base) name nodes testScript;
        }
      )).config;
    firecracker =
      (shown (
        import ../firecracker/make-test.nix {
          inherit pkgs;
          inherit (base) name nodes testScript;
          memSize = 512;
          vcpuCount = 2;
        }
      )).config;
    cloud-hypervisor =
      (shown (
        import ../cloud-hypervisor/make-test.nix {
          inherit pkgs;
          inherit (base) name nodes testScript;
        }
      )).config;
  };
  function =
    (makeTest (
      base // { testScript = { nodes, ... }: "assert '${nodes.server.networking.hostName}'\n"; }
    )).driver.script.text;
  modules = {
    settable = framework (packaged false);
    readOnly = framework (packaged true);
    before = framework {
      options.driver = lib.mkOption { type = lib.types.raw; };
      options.defaults = lib.mkOption { type = lib.types.raw; };
    };
  };
  # What the README and docs/nix.md have users of the flake write.
  users = {
    makeTest = (flake.lib.makeTest ({ inherit pkgs; } // base)).config;
    module = frameworkWith [ flake.nixosModules.test ] (packaged false);
    # One line of a test, whose machines are as they were.
    line =
      (frameworkWith [ { pythonTestDriverPackage = flake.packages.${system}.nixos-test-driver; } ] (
        packaged false
      )).driver;
  };
  outputs = {
    inherit (lib.mapAttrs (_: lib.attrNames) flake) lib overlays nixosModules;
    packages = lib.attrNames flake.packages.${system};
    apps = lib.attrNames flake.apps.${system};
    devShells = lib.attrNames flake.devShells.${system};
    checks = lib.attrNames flake.checks.${system};
    formatter = lib.attrNames flake.formatter;
  };
  checks = lib.mapAttrs (_: test: test.config) flake.checks.${system};
  examples = lib.mapAttrs (_: lib.mapAttrs (_: test: test.config)) (
    import ../examples/headscale {
      inherit pkgs;
      attest = ours;
    }
  );
  bench = builtins.deepSeq ours.bench.attributes.budgets ours.bench.attributes.script;
  budget =
    (ours.perfBudget {
      name = "smoke";
      checks.smoke = {
        test = ours.checks.integration;
        budget.total = 60000;
      };
    }).attributes.script;
  package = ours.attest.given.installPhase;
  version = ours.attest.given.buildPhase;
  withDebian = (ours.attest.override { withDebian = true; }).given.installPhase;
  tests = lib.attrNames ours.attest.given.passthru.tests;
}
