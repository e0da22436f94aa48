package attest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// KeepEnv is the environment variable with the directory in which go test keeps
// the labs of failed tests, where LabConfig does not say it.
const KeepEnv = "ATTEST_KEEP"

// keepLimit is how long saving a failed lab may take.
const keepLimit = 5 * time.Minute

// keep saves the lab of a test that has failed, if that was asked for.
func (l *TestLab) keep() {
	l.t.Helper()
	dir := l.Lab.config.KeepOnFailure
	if dir == "" {
		dir = os.Getenv(KeepEnv)
	}
	if dir == "" || !l.t.Failed() {
		return
	}
	limit := keepLimit
	if d, ok := l.t.(interface{ Deadline() (time.Time, bool) }); ok {
		if deadline, ok := d.Deadline(); ok {
			limit = min(limit, time.Until(deadline)/2) // the rest is for closing the lab
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(l.ctx), limit) // the test's own has ended
	defer cancel()
	dir, err := kept.directory(dir, l.t.Name())
	if err == nil {
		err = l.Lab.Save(ctx, dir)
	}
	if err != nil {
		l.t.Logf("attest: the lab could not be kept: %v", err)
		return
	}
	l.t.Logf("attest: the lab was kept, this opens it: attest debug %s", dir)
}

// kept are the directories that this process has kept labs in.
var kept keptLabs

type keptLabs struct {
	mu    sync.Mutex
	paths map[string]bool
}

// directory is an absolute path below dir for a lab of a test. What an earlier
// process has kept there is removed; further labs of the test get a number.
func (k *keptLabs) directory(dir, test string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	base := filepath.Join(dir, strings.NewReplacer("/", "-", "..", "").Replace(test))
	k.mu.Lock()
	defer k.mu.Unlock()
	path := base
	for n := 2; k.paths[path]; n++ {
		path = fmt.Sprintf("%s-%d", base, n)
	}
	if k.paths == nil {
		k.paths = map[string]bool{}
	}
	k.paths[path] = true
	if _, err := os.Stat(filepath.Join(path, labFile)); errors.Is(err, os.ErrNotExist) {
		return path, nil // nothing, or nothing of ours
	}
	return path, os.RemoveAll(path)
}
