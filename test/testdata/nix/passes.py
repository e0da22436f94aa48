start_all()
for machine in machines:
    machine.wait_for_unit("multi-user.target")

with subtest("the agent is the guest's own"):
    # A copy of it has its time; what comes through the shell has that of now.
    server.succeed("test $(stat -c %Y /run/attest/agent) = $(stat -c %Y /usr/local/bin/attest-agent)")

with subtest("they reach each other by name"):
    client.wait_until_succeeds("ping -c 1 -w 2 server")
    server.succeed("ping -c 1 -w 2 client")
