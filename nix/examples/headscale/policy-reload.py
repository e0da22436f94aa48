import json


def ping(to):
    return "ping -c 1 -W 5 " + to.succeed("tailscale ip -4").strip()


def reload(destination):
    """Gives the server another policy, which it reads when it is told to."""
    policy = json.dumps({"acls": [{"action": "accept", "src": ["*"], "dst": [destination + ":*"]}]})
    control.succeed(f"echo '{policy}' > /etc/headscale/policy.json", "systemctl kill -s HUP headscale.service")


start_all()
control.wait_for_unit("headscale.service")
control.wait_for_open_port(443)
control.succeed("headscale users create net")
user = json.loads(control.succeed("headscale users list -o json"))[0]["id"]
key = json.loads(control.succeed(f"headscale preauthkeys create --reusable -u {user} -o json"))["key"]

with subtest("a tailnet of two"):
    for machine in [alice, bob]:
        machine.wait_for_unit("tailscaled.service")
        machine.succeed(f"tailscale up --login-server https://control --accept-dns=false --netfilter-mode=off --timeout 10m --hostname {machine.name} --authkey {key}")
    alice.wait_until_succeeds(ping(bob))

with subtest("a policy that is reloaded closes what it closes, and nothing else"):
    reload(alice.succeed("tailscale ip -4").strip())
    alice.wait_until_fails(ping(bob))
    bob.wait_until_succeeds(ping(alice))
    reload("*")
    alice.wait_until_succeeds(ping(bob))
