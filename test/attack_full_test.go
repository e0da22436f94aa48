package test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// fullScript runs attest with a small file system in some place, in a mount namespace
// of its own: once as it is, and once when there is room. It needs no root.
//
//	sh -c fullScript sh SIZE INODES PLACE attest ARG...
const fullScript = `
size=$1 inodes=$2 place=$3; shift 3
mount -t tmpfs -o mode=700,size=$size,nr_inodes=$inodes none "$place" || exit 99
if [ -n "$SEED" ]; then mkdir -m 755 "$place/attest" && ln -s "$SEED"/* "$place/attest/"; fi
"$@" > "$OUT.first" 2>&1
echo first $?
for dir in "$ATTEST_STATE_DIR" "$XDG_CACHE_HOME"/attest/run "$XDG_CACHE_HOME"/attest/tmp; do
	[ ! -d "$dir" ] || find "$dir" -mindepth 1 | sed 's/^/left /'
done
mount -o remount,size=2G,nr_inodes=100000 "$place" || exit 99
"$@" > "$OUT.second" 2>&1
echo second $?
`

// TestStressFull gives attest too little space, or too few inodes, for its state, its
// cache or its output. It ends with the exit code of a host that lacks something or of
// a wrong setting; nothing is left; and when there is room it works.
func TestStressFull(t *testing.T) {
	a := newAttack(t, "no space or no inodes for the state, the cache or the output")
	dir := t.TempDir()
	config := writeFile(t, filepath.Join(dir, "lab.json"), `{"machines": [
  {"name": "one", "backend": "mock", "script": {"answers": [{"match": ".*", "stdout": "x\n"}], "files": {"/data": "`+strings.Repeat("z", 100000)+`"}}}
]}`)
	file := writeFile(t, filepath.Join(dir, "full_test.star"), `
def setup():
    one.succeed("prepare")

def test_copy():
    for i in range(20):
        one.copy_from_machine("/data", "copy%d" % i)

def test_restore():
    one.snapshot_create("here")
    one.snapshot_restore("here")
`)
	outcomes := map[string]int{}
	for i := range 90 {
		place := []string{"state", "cache", "output"}[i%3]
		size, inodes := "1G", 100000
		if i%2 == 0 {
			size = fmt.Sprintf("%dk", 4*(1+rand.IntN([]int{50, 500, 5000}[i%9/3])))
		} else {
			inodes = 2 + rand.IntN([]int{10, 30, 60}[i%9/3])
		}
		code, err := fullRun(t, place, "", size, inodes, "attest", "run", "--machine-config", config, file)
		a.try(fmt.Sprintf("%s with %s and %d inodes", place, size, inodes), err)
		outcomes[fmt.Sprintf("%s: %s", place, code)]++
	}
	t.Logf("ends: %v", outcomes)
}

// TestStressFullGuests is the same for the cache of real machines.
func TestStressFullGuests(t *testing.T) {
	a := newAttack(t, "no space or no inodes for the cache of guests")
	dir := t.TempDir()
	file := writeFile(t, filepath.Join(dir, "full_test.star"), `
m = machine(image = debian(), memory = 128, cmdline = "attest.init=none")

def setup():
    m.succeed("echo x > /root/x")

def test_restore():
    m.snapshot_create("here")
    m.succeed("head -c 20M /dev/urandom > /root/data; sync")
    m.snapshot_restore("here")
    m.succeed("cat /root/x")
`)
	home := ownCache(t, imageKinds...)
	for i := range 8 {
		size, inodes := "1G", 100000
		if i%2 == 0 {
			size = fmt.Sprintf("%dM", 2+rand.IntN(150))
		} else {
			inodes = 20 + rand.IntN(40)
		}
		code, err := fullRun(t, "cache", filepath.Join(home, "attest"), size, inodes, "attest", "run", file)
		a.try(fmt.Sprintf("cache with %s and %d inodes", size, inodes), err)
		t.Logf("%s, %d inodes: %s", size, inodes, code)
	}
}

// fullRun runs attest in a place that is too small.
func fullRun(t *testing.T, place, seed, size string, inodes int, args ...string) (code string, err error) {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "at") // short, for sockets
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	places := map[string]string{}
	for _, name := range []string{"state", "cache", "output"} {
		places[name] = filepath.Join(dir, name)
		if err := os.Mkdir(places[name], 0o700); err != nil {
			return "", err
		}
	}
	if place == "output" {
		args = append(args, "-o", places["output"])
	}
	script := append([]string{"--user", "--map-root-user", "--mount", "sh", "-c", fullScript, "sh", size, fmt.Sprint(inodes), places[place]}, args...)
	cmd := exec.Command("unshare", script...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "ATTEST_STATE_DIR="+places["state"], "XDG_CACHE_HOME="+places["cache"], "OUT="+filepath.Join(dir, "out"), "SEED="+seed)
	out, err := cmd.CombinedOutput()
	said := func(which string) string {
		text, _ := os.ReadFile(filepath.Join(dir, "out."+which))
		return string(bytes.TrimSpace(text))
	}
	if err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	code = strings.TrimPrefix(strings.SplitN(string(out), "\n", 2)[0], "first ")
	switch {
	case code != "0" && code != "2" && code != "3":
		return code, fmt.Errorf("exit code %s\n%s", code, said("first"))
	case strings.Contains(string(out), "left "):
		return code, fmt.Errorf("%s\n%s", out, said("first"))
	case code != "0" && !strings.Contains(strings.ToLower(said("first")), "no space left") && !strings.Contains(said("first"), "free"):
		return code, fmt.Errorf("it does not say what is missing:\n%s", said("first"))
	case !strings.Contains(string(out), "second 0"):
		return code, fmt.Errorf("with room: %s\n%s\nbefore:\n%s", out, said("second"), said("first"))
	}
	return code, nil
}
