import json
from concurrent.futures import ThreadPoolExecutor

clients = [alice, bob, carol]

start_all()
control.wait_for_unit("headscale.service")
control.wait_for_open_port(443)
control.succeed("headscale users create net")
user = json.loads(control.succeed("headscale users list -o json"))[0]["id"]
key = json.loads(control.succeed(f"headscale preauthkeys create --reusable -u {user} -o json"))["key"]


def join(machine):
    machine.wait_for_unit("tailscaled.service")
    machine.succeed(f"tailscale up --login-server https://control --accept-dns=false --netfilter-mode=off --timeout 10m --hostname {machine.name} --authkey {key}")


def ping(to):
    return "ping -c 1 -W 5 " + to.succeed("tailscale ip -4").strip()


with subtest("three join at once"):
    with ThreadPoolExecutor() as pool:
        list(pool.map(join, clients))
    for machine in clients:
        machine.wait_until_succeeds("test $(tailscale status --json | grep -c '\"Online\": true') -ge 3")

with subtest("who has joined talks without the server"):
    cut = network.isolate(control)
    for machine, to in [(alice, bob), (bob, carol), (carol, alice)]:
        machine.wait_until_succeeds(ping(to))
    cut.heal()

with subtest("one that leaves is not there any more for the others, which talk on"):
    carols = ping(carol)
    carol.wait_until_succeeds("tailscale logout")
    alice.wait_until_fails(carols)
    alice.wait_until_succeeds(ping(bob))
