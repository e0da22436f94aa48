package script

import (
	"fmt"
	"os"
	"strconv"
	"sync"

	"github.com/attest-vm/attest"
	guestimage "github.com/attest-vm/attest/internal/image"
)

// MemoryEnv sets how much memory a script may have, in MiB.
const MemoryEnv = "ATTEST_SCRIPT_MEMORY"

// minMemory is the least limit that can be set, in MiB: attest itself needs some.
const minMemory = 64

// MemoryLimit is how much memory scripts may have in use, in bytes: 2 GiB, or half of
// what the host has available if that is less. A setting that makes no sense is an
// *attest.ConfigError.
var MemoryLimit = sync.OnceValues(func() (int64, error) {
	text := os.Getenv(MemoryEnv)
	if text == "" {
		return max(256<<20, min(2<<30, guestimage.MemoryAvailable()/2)), nil
	}
	mib, err := strconv.ParseInt(text, 10, 32)
	if err != nil || mib < minMemory {
		return 0, &attest.ConfigError{Subject: fmt.Sprintf("%s=%q", MemoryEnv, text), Reason: fmt.Sprintf("want a number of MiB, at least %d", minMemory)}
	}
	return mib << 20, nil
})
