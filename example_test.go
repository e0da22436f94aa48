package attest_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"testing"
	"time"

	"github.com/attest-vm/attest"
)

// server is a machine that gives canned answers instead of running a guest, so that
// the examples run anywhere (docs/mock.md). In place of Backend and MockScript a real
// one has an Image.
var server = attest.MachineConfig{Name: "server", Backend: "mock", MockScript: []byte(`{
	"console": "Welcome to the server",
	"units": {"nginx.service": "active"},
	"ports": [80],
	"answers": [
		{"command": "uname -s", "stdout": "Linux\n"},
		{"command": "systemctl is-active nginx", "times": 2, "exit_code": 3},
		{"command": "systemctl is-active nginx", "stdout": "active\n"},
		{"command": "cat /etc/missing", "exit_code": 1, "stderr": "cat: /etc/missing: No such file or directory\n"}
	]
}`)}

// open opens a lab for an example.
func open(ctx context.Context, machines ...attest.MachineConfig) (lab *attest.Lab, done func()) {
	host, err := attest.OpenHost(ctx, attest.HostConfig{})
	if err != nil {
		log.Fatal(err)
	}
	lab, err = host.NewLab(ctx, attest.LabConfig{Machines: machines})
	if err != nil {
		log.Fatal(err)
	}
	return lab, func() {
		if err := errors.Join(lab.Close(), host.Close()); err != nil {
			log.Fatal(err)
		}
	}
}

// Outside of go test operations have a context and return an error.
func Example() {
	ctx := context.Background()
	host, err := attest.OpenHost(ctx, attest.HostConfig{})
	if err != nil {
		log.Fatal(err)
	}
	defer host.Close()
	lab, err := host.NewLab(ctx, attest.LabConfig{Machines: []attest.MachineConfig{server}})
	if err != nil {
		log.Fatal(err)
	}
	defer lab.Close()
	out, err := lab.Machine("server").Succeed(ctx, "uname -s")
	fmt.Print(out, err)
	// Output:
	// Linux
	// <nil>
}

func ExampleMachine_Succeed() {
	ctx := context.Background()
	lab, done := open(ctx, server)
	defer done()
	_, err := lab.Machine("server").Succeed(ctx, "cat /etc/missing", attest.Timeout(time.Minute))
	fmt.Println(err)
	var failed *attest.CommandError
	if errors.As(err, &failed) {
		fmt.Print(failed.Result.Stderr)
	}
	// Output:
	// server: command `cat /etc/missing` failed (exit code 1)
	// cat: /etc/missing: No such file or directory
}

func ExampleMachine_WaitUntilSucceeds() {
	ctx := context.Background()
	lab, done := open(ctx, server)
	defer done()
	out, err := lab.Machine("server").WaitUntilSucceeds(ctx, "systemctl is-active nginx")
	fmt.Print(out, err)
	// Output:
	// active
	// <nil>
}

func ExampleMachine_WaitForConsoleText() {
	ctx := context.Background()
	lab, done := open(ctx, server)
	defer done()
	fmt.Println(lab.Machine("server").WaitForConsoleText(ctx, "Welcome to .*"))
	// Output:
	// <nil>
}

func ExampleLab_WaitAll() {
	ctx := context.Background()
	other := server
	other.Name = "other"
	lab, done := open(ctx, server, other)
	defer done()
	err := lab.WaitAll(ctx, func(ctx context.Context, m *attest.Machine) error {
		return m.WaitForUnit(ctx, "nginx.service")
	})
	fmt.Println(err)
	// Output:
	// <nil>
}

func ExampleCondition_During() {
	ctx := context.Background()
	lab, done := open(ctx, server)
	defer done()
	m := lab.Machine("server")
	answers := attest.Condition{Description: "the server answers", Check: func(ctx context.Context) error {
		return m.WaitForOpenPort(ctx, 80, attest.Timeout(0))
	}}
	err := answers.During(ctx, func(ctx context.Context) error {
		_, err := m.Succeed(ctx, "uname -s")
		return err
	})
	fmt.Println(err)
	// Output:
	// <nil>
}

func ExampleNetwork_Partition() {
	ctx := context.Background()
	client := server
	client.Name = "client"
	lab, done := open(ctx, server, client)
	defer done()
	fault, err := lab.Network().Partition(ctx, lab.Machine("client"), lab.Machine("server"),
		attest.OneWay(),
		attest.Match("tcp:80"),
		attest.During(func(context.Context) error {
			fmt.Println("the client's requests are lost")
			return nil
		}))
	fmt.Println(fault, err)
	// Output:
	// the client's requests are lost
	// partition(client, server, oneway=true, match="tcp:80") <nil>
}

func ExampleStatusOf() {
	ctx := context.Background()
	lab, done := open(ctx, server)
	defer done()
	err := lab.Machine("server").WaitForOpenPort(ctx, 70000)
	fmt.Println(attest.StatusOf(err), "-", err)
	// Output:
	// invalid - server: wait_for_open_port(70000): want a port from 1 to 65535
}

func ExampleLab_Snapshot() {
	ctx := context.Background()
	lab, done := open(ctx, server)
	defer done()
	if _, err := lab.Machine("server").Succeed(ctx, "uname -s"); err != nil {
		log.Fatal(err)
	}
	snapshot, err := lab.Snapshot(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer snapshot.Close()
	for range 2 {
		fork, err := snapshot.Fork(ctx)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(fork.Machine("server").IsUp())
		fork.Close()
	}
	// Output:
	// true
	// true
}

// The following need guests, and a test that calls them.

func ExampleNew() {
	_ = func(t *testing.T) {
		lab := attest.New(t,
			attest.MachineConfig{Name: "server", Image: attest.Debian{Packages: []string{"nginx"}}},
			attest.MachineConfig{Name: "client", Image: attest.Debian{Packages: []string{"curl"}}},
		)
		lab.Machine("server").WaitForUnit("nginx.service")
		lab.Machine("client").Succeed("curl -sf http://server/", attest.Timeout(time.Minute))
	}
}

func ExampleTestLab_With() {
	_ = func(t *testing.T, lab *attest.TestLab) {
		for _, m := range lab.Machines() {
			t.Run(m.Name(), func(t *testing.T) { lab.With(t).Machine(m.Name()).WaitForUnit("etcd.service") })
		}
	}
}

func ExampleMain() {
	var lab *attest.TestLab // of the package; tests have it as lab.With(t)
	_ = func(m *testing.M) {
		config := attest.LabConfig{Machines: []attest.MachineConfig{{Name: "server", Image: attest.Debian{}}}}
		os.Exit(attest.Main(m, config, func(l *attest.TestLab) { lab = l }))
	}
	_ = lab
}
