// Package example shows attest in go test: run it with
//
//	go test -v ./examples/go
package example

import (
	"strings"
	"testing"

	"github.com/attest-vm/attest"
)

func TestClientReachesServer(t *testing.T) {
	lab := attest.New(t,
		attest.MachineConfig{Name: "server", Image: attest.Debian{Packages: []string{"nginx"}}, Memory: 256},
		attest.MachineConfig{Name: "client", Image: attest.Debian{Packages: []string{"curl"}}, Memory: 256},
	)
	server, client := lab.Machine("server"), lab.Machine("client")
	lab.StartAll()

	server.WaitForUnit("nginx.service")
	server.WaitForOpenPort(80)
	server.Succeed("echo hello from the server > /var/www/html/hello")
	if got, want := client.Succeed("curl -sf http://server/hello"), "hello from the server\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}

	// A command that fails is a result like any other.
	missing := client.Execute("curl -sf http://server/missing")
	if missing.ExitCode != 22 {
		t.Errorf("curl of a missing page: exit code %d, want 22 (HTTP error)", missing.ExitCode)
	}
	if log := server.Succeed("cat /var/log/nginx/access.log"); !strings.Contains(log, `"GET /missing HTTP/1.1" 404`) {
		t.Errorf("the server saw no request for /missing:\n%s", log)
	}
}
