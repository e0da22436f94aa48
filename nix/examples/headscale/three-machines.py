import json

clients = [alice, bob]

start_all()
control.wait_for_unit("headscale.service")
control.wait_for_open_port(443)
control.succeed("headscale users create net")
user = json.loads(control.succeed("headscale users list -o json"))[0]["id"]
key = json.loads(control.succeed(f"headscale preauthkeys create --reusable -u {user} -o json"))["key"]

with subtest("clients join"):
    for machine in clients:
        machine.wait_for_unit("tailscaled.service")
        machine.succeed(f"tailscale up --login-server https://control --accept-dns=false --netfilter-mode=off --timeout 10m --hostname {machine.name} --authkey {key}")

with subtest("they reach each other without the server"):
    address = bob.succeed("tailscale ip -4").strip()
    alice.wait_until_succeeds(f"tailscale ping --c 10 --timeout 10s {address} | grep 'via 192.168.1'")

with subtest("by the relay, when nothing else is left"):
    network.partition([alice], [bob])
    alice.wait_until_succeeds(f"tailscale ping --c 1 --timeout 10s --until-direct=false {address} | grep 'via DERP'")
    alice.wait_until_succeeds(f"ping -c 1 -W 5 {address}")
