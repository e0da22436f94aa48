import json

control.wait_for_unit("headscale.service")
control.wait_for_open_port(443)

with subtest("the server answers by TLS, under the name that its certificate has"):
    assert "pass" in control.succeed("curl --silent --fail --cacert /etc/control.pem https://control/health")

with subtest("the command finds the server"):
    control.succeed("headscale users create somebody")
    assert [user["name"] for user in json.loads(control.succeed("headscale users list -o json"))] == ["somebody"]

with subtest("what the server knows outlives it"):
    control.succeed("systemctl restart headscale.service")
    control.wait_for_open_port(443)
    control.wait_until_succeeds("headscale users list -o json | grep somebody")
