import json


def headscale(command):
    """What a command of headscale shows, which is JSON."""
    return json.loads(control.succeed(f"headscale {command} -o json"))


start_all()
control.wait_for_unit("headscale.service")
control.wait_for_open_port(443)
alice.wait_for_unit("tailscaled.service")

with subtest("users are made, renamed and removed, and each name is there once"):
    control.succeed("headscale users create net", "headscale users create another")
    control.fail("headscale users create another")
    ids = {user["name"]: user["id"] for user in headscale("users list")}
    control.succeed(f"headscale users rename --identifier {ids['another']} --new-name other")
    control.succeed(f"headscale users destroy --identifier {ids['net']} --force")
    assert [user["name"] for user in headscale("users list")] == ["other"]

with subtest("a node joins with a key, is renamed and removed"):
    key = headscale(f"preauthkeys create --reusable -u {ids['another']}")["key"]
    alice.succeed(f"tailscale up --login-server https://control --accept-dns=false --netfilter-mode=off --timeout 10m --authkey {key}")
    node = headscale("nodes list")[0]
    assert (node["given_name"], node["user"]["name"]) == ("alice", "other")
    assert node["ip_addresses"][0] == alice.succeed("tailscale ip -4").strip()
    control.succeed(f"headscale nodes rename --identifier {node['id']} alicia")
    assert headscale("nodes list")[0]["given_name"] == "alicia"
    control.succeed(f"headscale nodes delete --identifier {node['id']} --force")
    assert not headscale("nodes list")
