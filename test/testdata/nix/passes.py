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
