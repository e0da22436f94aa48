# The two commands that matter are "make demo" and "make test".

GO ?= go
export CGO_ENABLED = 0

.PHONY: all build demo test stress bench generate clean

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

# What takes minutes to show: networks under load lose nothing; machines that
# are restored again and again, or sixteen at once, or killed, leave nothing; builds
# of which a process is killed fail, and the next works; and every decoder is fuzzed,
# FUZZTIME (30s) each.
stress:
	$(GO) test ./test -run Stress -v -timeout 90m -args -stress
	$(GO) test ./internal/network -run UnderLoad -v -args -load 60s
	GO="$(GO)" scripts/fuzz

# Measures, beside the NixOS driver's protocol in the same run.
bench: build
	@scripts/setup bench
	$(GO) run ./test/bench -attest bin/attest -json out/bench.json

# Rewrites what is generated: golden files and pages of docs/.
generate:
	$(GO) test ./internal/operation ./internal/report -update

clean:
	rm -rf bin out
