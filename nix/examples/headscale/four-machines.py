import json
from concurrent.futures import ThreadPoolExecutor

clients = [alice, bob, carol]
pairs = [(alice, bob), (bob, carol), (carol, alice)]

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


def direct(to):
    """A command that succeeds when a machine is reached without the relay, which is the server's."""
    return f"tailscale ping --c 10 --timeout 10s {to.succeed('tailscale ip -4').strip()} | grep 'via 192.168.1'"


with subtest("three join at once"):
    with ThreadPoolExecutor() as pool:
        list(pool.map(join, clients))
    for machine in clients:
        machine.wait_until_succeeds("test $(tailscale status --json | grep -c '\"Online\": true') -ge 3")
    for machine, to in pairs:
        machine.wait_until_succeeds(direct(to))

with subtest("who has joined talks without the server"):
    cut = network.isolate(control)
    for machine, to in pairs:
        machine.wait_until_succeeds(ping(to))
    cut.heal()

with subtest("one that leaves is not there any more for the others, which talk on"):
    carols = ping(carol)
    # Carol dials the server anew, which was cut off. A logout in the middle of that may never end.
    carol.wait_until_succeeds("timeout 120 tailscale logout")
    alice.wait_until_fails(carols)
    alice.wait_until_succeeds(ping(bob))
