import json

clients = [alice, bob]

start_all()
control.wait_for_unit("headscale.service")
control.wait_for_open_port(8080)
control.succeed("headscale users create net")
user = json.loads(control.succeed("headscale users list -o json"))[0]["id"]
key = json.loads(control.succeed(f"headscale preauthkeys create --reusable -u {user} -o json"))["key"]

with subtest("clients join"):
    for machine in clients:
        machine.wait_for_unit("tailscaled.service")
        machine.succeed(f"tailscale up --login-server http://control:8080 --authkey {key} --hostname {machine.name}")

with subtest("they reach each other"):
    address = bob.succeed("tailscale ip -4").strip()
    alice.wait_until_succeeds(f"tailscale ping --c 1 {address}")

with subtest("by the relay, when nothing else is left"):
    network.partition([alice], [bob])
    alice.wait_until_succeeds(f"ping -c 1 -W 2 {address}")
