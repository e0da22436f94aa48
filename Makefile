# The two commands that matter are "make demo" and "make test".

GO ?= go
export CGO_ENABLED = 0

.PHONY: all build demo test test-guests test-screens test-microvm test-nix test-shell test-tailnet stress bench generate clean

all: build

build:
	@GO="$(GO)" scripts/build bin/attest

# Runs the examples on real machines.
demo:
	@scripts/setup run
	@$(MAKE) --no-print-directory build
	bin/attest run -o out/demo examples/*.star

# Everything: static checks, unit tests, the race detector, and end-to-end tests
# on real guests. It installs what it needs.
test:
	@scripts/setup test
	@scripts/test

# Every method that a guest answers, called from Python, by the agent and by the guest's
# root shell: two machines, two boots of each, and equal results. And what is said of a root
# shell that has fallen silent.
test-shell: out/boot/grub.img
	$(GO) test ./test -run 'ShellResultsAreEqual|ShellFallsSilent' -v -timeout 60m -args -shell

# What takes two hours or three to show: networks under load lose nothing; machines that
# are restored again and again, or sixteen at once, leave nothing; what SECURITY.md
# promises holds under attack (each attack prints its figure); every boot that cannot go on
# says why; and every decoder is fuzzed, FUZZTIME (30s) each.
stress:
	$(GO) test ./test -run Stress -v -timeout 4h -args -stress
	$(GO) test ./internal/network -run UnderLoad -v -args -load 60s
	$(GO) test ./internal/boot -run TestBoot -v -args -each
	GO="$(GO)" scripts/fuzz

# Tests the backends of microVMs with the real programs, which FIRECRACKER and
# CLOUD_HYPERVISOR name, in a guest that has a KVM of its own. It takes half an hour or more
# without hardware virtualisation; docs/microvms.md says how to run it in parts.
test-microvm:
	@[ -n "$$FIRECRACKER$$CLOUD_HYPERVISOR" ] || echo "test-microvm: FIRECRACKER and CLOUD_HYPERVISOR name no program to test with: nothing is tested (docs/microvms.md)"
	@[ -z "$$FIRECRACKER$$CLOUD_HYPERVISOR" ] || { scripts/setup test && $(GO) test ./test -run TestMicroVM -v -timeout 4h; }

# What real machines are for, on real guests: an NFS server that reboots, disks on every bus,
# and pulled out of a mirror, containers, DHCP servers and a relay, disks that boot by themselves,
# and what is refused. Minutes each, and packages from Debian's mirror the first time. And a
# Kubernetes, whose programs are in the directory that KUBERNETES names.
test-guests: build out/boot/grub.img
	@scripts/setup guests
	bin/attest run -j 2 -o out/guests examples/guests/*.star
	@[ -n "$$KUBERNETES" ] || echo "test-guests: KUBERNETES names no directory with Kubernetes' programs: it is not tested (docs/machines.md)"
	@[ -z "$$KUBERNETES" ] || bin/attest run -j 1 -o out/kubernetes --var KUBERNETES="$$KUBERNETES" examples/guests/kubernetes/kubernetes_test.star
	$(GO) test ./test -run TestGuests -v -timeout 60m -args -guests

out/boot/grub.img: examples/guests/boot-disks
	@scripts/setup guests
	examples/guests/boot-disks out/boot

# What is on real screens: a boot menu, a login, desktops, a panic; and attest's own pages in
# a browser, as a person uses them.
test-screens:
	@scripts/setup screens
	$(GO) test ./test -run TestScreens -v -timeout 60m -args -screens

# What Nix builds of nix/, with the programs of this host instead of nixpkgs: the packages,
# and with these snapshots, drivers and benchmarks of real guests. NIXPKGS_LIB names the lib of nixpkgs
# to evaluate with, if there is one (docs/nix.md).
test-nix:
	@scripts/setup test
	$(GO) test ./nix -v
	$(GO) test ./test -run TestNix -v -timeout 60m -args -nix

# The example of a tailnet, in Starlark and in Go, COUNT times, and the tests of NixOS machines
# in nix/examples/headscale, on Debian machines. Its programs are built from
# Go modules: minutes the first time, and a line that says so if Go cannot fetch them.
COUNT ?= 1
test-tailnet: build
	@scripts/setup run
	@GO="$(GO)" examples/tailnet/build-programs
	@for i in $$(seq $(COUNT)); do bin/attest run -j 2 -o out/tailnet-report examples/tailnet/tailnet_test.star || exit; done
	$(GO) vet -tags tailnet ./examples/tailnet
	$(GO) test -tags tailnet -v -timeout 4h -count $(COUNT) ./examples/tailnet
	nix/examples/headscale/on-debian

# Measures, beside the NixOS driver's protocol in the same run.
bench: build
	@scripts/setup bench
	$(GO) run ./test/bench -attest bin/attest -json out/bench.json

# Rewrites what is generated: golden files and pages of docs/.
generate:
	$(GO) test ./internal/operation ./internal/report ./cmd/attest -update

clean:
	rm -rf bin out
