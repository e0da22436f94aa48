package protocol

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"github.com/attest-vm/attest/internal/event"
)

// Version is the version of the protocol. It grows when a peer of the version before
// would misunderstand something.
const Version = 1

// MaxMessage is the limit of one message, in bytes with its newline. What is larger
// goes in pieces, see data.
const MaxMessage = 4 << 20

// A message is a request (ID and Method), a notification (Method) or a reply (ID and
// Result or Error).
type message struct {
	Version string          `json:"jsonrpc"`
	ID      *int64          `json:"id,omitempty"`
	Method  string          `json:"method,omitempty"`
	Params  json.RawMessage `json:"params,omitempty"`
	Result  json.RawMessage `json:"result,omitempty"`
	Error   *Error          `json:"error,omitempty"`
}

// An Error is the error of a reply.
type Error struct {
	Code    int        `json:"code"`
	Message string     `json:"message"`
	Data    *ErrorData `json:"data,omitempty"` // of CodeOperation
}

// The codes of errors. Those below -32000 are JSON-RPC's.
const (
	CodeParse     = -32700 // not a message; the connection ends
	CodeRequest   = -32600 // a message that makes no sense; the connection ends
	CodeMethod    = -32601 // there is no such method
	CodeParams    = -32602 // the parameters do not fit
	CodeInternal  = -32603 // the other side is broken
	CodeCancelled = -32800 // the request was cancelled
	CodeBusy      = -32000 // too many requests are under way
	CodeOperation = 1      // the operation failed: Data says how
)

func (e *Error) Error() string { return e.Message }

// A PeerError is a peer that does not keep to the protocol, or that is gone.
type PeerError struct {
	Peer   string // "Python"
	Reason string
	Err    error
}

func (e *PeerError) Error() string {
	msg := e.Peer + ": " + e.Reason
	if e.Err != nil {
		msg += ": " + e.Err.Error()
	}
	return msg
}

func (e *PeerError) Unwrap() error { return e.Err }

// Status is that of the infrastructure: no test is at fault.
func (*PeerError) Status() event.Status { return event.Infra }

// errMalformed is in errors about what a peer sent.
var errMalformed = errors.New("not a message of the protocol")

// readMessage reads one message. io.EOF is the end between two messages.
func readMessage(r *bufio.Reader) (*message, error) {
	line, err := readLine(r)
	if err != nil {
		return nil, err
	}
	return decodeMessage(line)
}

// readLine reads up to a newline, and not more than MaxMessage.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		piece, err := r.ReadSlice('\n')
		if len(line)+len(piece) > MaxMessage {
			return nil, fmt.Errorf("%w: longer than %d bytes", errMalformed, MaxMessage)
		}
		line = append(line, piece...)
		switch {
		case err == nil:
			return line, nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(line) > 0:
			return nil, fmt.Errorf("the end of the stream in the middle of a message (%d bytes): %w", len(line), io.ErrUnexpectedEOF)
		default:
			return nil, err
		}
	}
}

// decodeMessage reads a message and checks that it is one of the three kinds.
func decodeMessage(line []byte) (*message, error) {
	bad := func(reason string) (*message, error) {
		return nil, fmt.Errorf("%w: %s: %s", errMalformed, reason, excerpt(line))
	}
	if !utf8.Valid(line) {
		return bad("not UTF-8")
	}
	var m message
	if err := json.Unmarshal(line, &m); err != nil {
		return bad("not JSON, or a field of another type")
	}
	switch {
	case m.Version != "2.0":
		return bad(`"jsonrpc" is not "2.0"`)
	case m.ID != nil && *m.ID < 1:
		return bad(`"id" is not a positive number`)
	case m.Method != "" && (m.Result != nil || m.Error != nil):
		return bad("both a request and a reply")
	case m.Method == "" && m.ID == nil && m.Error == nil:
		return bad("neither a request nor a reply")
	case m.Method == "" && (m.Result == nil) == (m.Error == nil):
		return bad(`a reply has either "result" or "error"`)
	}
	return &m, nil
}

// excerpt is the beginning of what a peer sent, for an error.
func excerpt(line []byte) string {
	const limit = 120
	line = bytes.TrimRight(line, "\r\n")
	cut := ""
	if len(line) > limit {
		line, cut = line[:limit], "…"
	}
	return fmt.Sprintf("%q%s", line, cut)
}
