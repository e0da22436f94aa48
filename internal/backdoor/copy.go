package backdoor

import (
	"io"
	"path"
	"strings"

	"github.com/attest-vm/attest/internal/wire"
	"github.com/attest-vm/attest/internal/wire/tarfs"
)

// Copies go through the guest's tar.

// targetScript says where a copy to $1 goes: "in" a directory, or "as" a name.
const targetScript = `type -P tar > /dev/null || { echo "a copy needs attest's agent or tar in the guest" >&2; exit 1; }
to=$(readlink -f -- "$1") || to=$1
if [ -d "$to" ]; then printf 'in %s' "$to"
else mkdir -p -- "$(dirname -- "$to")" && printf 'as %s' "$to"; fi`

// put creates what the stream brings at dst, as the agent does: inside of it, if it is a
// directory that exists.
func (s *shell) put(stream *wire.Stream, dst string) (any, error) {
	ctx := stream.Context()
	if !path.IsAbs(dst) {
		return nil, errorf(wire.KindInvalid, "%q is not an absolute path", dst)
	}
	r, err := s.run(ctx, nil, nil, targetScript, dst)
	if err == nil && r.code != 0 {
		err = errorf(wire.KindFailed, "%s", r.complaint())
	}
	if err != nil {
		return nil, err
	}
	how, target, _ := strings.Cut(string(r.stdout), " ")
	dir, name := target, ""
	if how != "in" {
		dir, name = path.Split(target)
	}
	plain, feed := io.Pipe()
	copied := make(chan tarfs.Stats, 1)
	go func() {
		stats, err := tarfs.Plain(feed, stream.Reader(wire.Stdin), name)
		feed.CloseWithError(err)
		copied <- stats
	}()
	r, err = s.run(ctx, plain, nil, `tar -xpmf - --no-same-owner -C "$1"`, dir)
	plain.Close()
	stats := <-copied
	if err == nil && r.code != 0 {
		err = errorf(wire.KindFailed, "%s", strings.ToLower(r.complaint()))
	}
	return wire.CopyResult{Files: stats.Files, Bytes: stats.Bytes}, err
}

// sourceScript packs $1.
const sourceScript = `type -P tar > /dev/null || { echo "a copy needs attest's agent or tar in the guest" >&2; exit 1; }
from=$(readlink -e -- "$1") || { echo "lstat $1: no such file or directory" >&2; exit 1; }
[ "$from" != / ] || { echo "a copy of / needs attest's agent in the guest" >&2; exit 1; }
exec tar -cf - -C "$(dirname -- "$from")" -- "$(basename -- "$from")"`

// get sends src.
func (s *shell) get(stream *wire.Stream, src string) (any, error) {
	if !path.IsAbs(src) {
		return nil, errorf(wire.KindInvalid, "%q is not an absolute path", src)
	}
	r, err := s.run(stream.Context(), nil, stream.Writer(wire.Stdout), sourceScript, src)
	if err == nil && r.code != 0 {
		err = errorf(wire.KindFailed, "%s", r.complaint())
	}
	return wire.CopyResult{}, err
}
