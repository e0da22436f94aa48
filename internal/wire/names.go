package wire

// Names by which the host, the guest's /init and the agent know each other's things.
const (
	// AgentPort is the name of the virtio serial port that the agent talks on.
	AgentPort = "org.attest.agent.0"
	// UploadPort is the name of the one by which a guest without an agent gets it.
	UploadPort = "org.attest.upload.0"
	// VsockPort is the port of AF_VSOCK on which the agent of a guest without virtio
	// serial ports waits for the host.
	VsockPort = 1024
	// VsockArgument on the kernel's command line says that the host comes by vsock.
	VsockArgument = "attest.vsock=1"
	// DisksArgument is the key of the argument that names the disks where the VMM gives
	// them no serials of ours: the serials in the order of vda, vdb, …, with commas.
	DisksArgument = "attest.disks"
	// AgentArg0 is the agent's argv[0]. Processes whose names begin with "@" outlive
	// systemd's shutdown (https://systemd.io/ROOT_STORAGE_DAEMONS).
	AgentArg0 = "@attest-agent"
	// StayingInit is the name (/proc/1/comm) of attest's own init when it stays
	// process 1, because the guest has none. The agent knows it by that.
	StayingInit = "attest-init"
	// EndingInit is its name while it ends all processes and then the machine.
	EndingInit = "attest-ending"
)
