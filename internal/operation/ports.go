package operation

import "context"

var portsTable = []*Operation{
	{
		Name: "forward_port", Subject: "Ports", Result: Int,
		Params: []Param{
			{Name: "host_port", Type: Int, Default: 8080, Doc: "a port of this host, on its loopback address only; 0 chooses a free one"},
			{Name: "guest_port", Type: Int, Default: 80, Doc: "a TCP port in the guest"},
		},
		Doc: "Carries connections to a port of this host into the guest, until the machine is off. Returns the host's port.\n\n" +
			"The agent makes them in the guest, to localhost or, if nothing listens there, to the machine's own addresses. They need no network, and faults of a network do not affect them.",
		call: func(ctx context.Context, t target, a Args) (any, error) {
			return t.machine.ForwardPort(ctx, a.Int("host_port"), a.Int("guest_port"))
		},
	},
}
