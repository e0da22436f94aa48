package vmm

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
)

var sizePattern = regexp.MustCompile(`^([0-9]+)([KMGT])(?:iB)?$`)

// ParseSize reads the size of a disk as qemu-img has it: a whole number, and a unit
// of K, M, G or T, which are powers of 1024 bytes.
func ParseSize(s string) (int64, error) {
	found := sizePattern.FindStringSubmatch(s)
	if found == nil {
		return 0, fmt.Errorf(`%q is not a size such as "512M" or "2G": a whole number of K, M, G or T`, s)
	}
	shift := 10 * (1 + strings.Index("KMGT", found[2]))
	n, err := strconv.ParseInt(found[1], 10, 64)
	if err != nil || n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("%q is too large for a disk", s)
	}
	if n == 0 {
		return 0, fmt.Errorf("%q is no size for a disk", s)
	}
	return n << shift, nil
}
