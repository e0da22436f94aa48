start_all()
for machine in machines:
    machine.wait_for_unit("multi-user.target")

with subtest("the agent is the guest's own"):
    # A copy of it has its time; what comes through the shell has that of now.
    server.succeed("test $(stat -c %Y /run/attest/agent) = $(stat -c %Y /usr/local/bin/attest-agent)")

with subtest("a unit of its own has started the agent"):
    began = int(server.get_unit_property("attest-agent.service", "ActiveEnterTimestampMonotonic"))
    assert 0 < began < int(server.get_unit_property("backdoor.service", "ActiveEnterTimestampMonotonic"))
    server.succeed("kill -0 -- -$(cut -d' ' -f1 /run/attest/agent.pid)")

with subtest("they reach each other by name"):
    client.wait_until_succeeds("ping -c 1 -w 2 server")
    server.succeed("ping -c 1 -w 2 client")

with subtest("each has the cards of its own number"):
    server.block()
    client.fail("ping -c 1 -W 1 server")
    server.unblock()
    client.wait_until_succeeds("ping -c 1 -W 2 server")

with subtest("a split store"):
    # As the initrd of a machine on a microVM mounts it.
    server.succeed(
        "mount LABEL=nixos /mnt",
        "mount -t erofs -o ro UUID=6a7465d6-93ac-4b1a-9c0e-617474657374 /mnt/nix/.ro-store",
        "mount -t overlay -o lowerdir=/mnt/nix/.ro-store,upperdir=/mnt/nix/.rw-store/upper,workdir=/mnt/nix/.rw-store/work overlay /mnt/nix/store",
    )
    init = server.succeed("readlink /mnt/sbin/init").strip().split("/store/")[1]
    said = server.succeed(f"/mnt/nix/store/{init}").strip()
    assert said.startswith("this is server, of "), said
    etc = said.split("/store/")[1]
    server.succeed(f"cmp /mnt/nix/store/{etc} /mnt/nix/.ro-store/{etc}", "touch /mnt/nix/store/another")
    server.fail("touch /mnt/nix/.ro-store/another")
