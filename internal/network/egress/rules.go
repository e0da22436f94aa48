package egress

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
)

// HostName is the name that stands for the host in rules: its loopback, which the guest
// reaches at the gateway's addresses, and the addresses of its interfaces.
const HostName = "host"

// Everything is the rule that allows every destination but the host itself, link-local
// addresses and those at which clouds serve the credentials of their machines.
const Everything = "*"

// Rules say where a machine may connect to.
type Rules struct {
	all   bool
	rules []rule
}

// A rule is a range of addresses or a name, and a port or all of them (0).
type rule struct {
	prefix netip.Prefix
	name   string
	port   uint16
}

var hostPattern = regexp.MustCompile(`^([a-z0-9_]([a-z0-9_-]*[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?$`)

// ParseRules reads destinations: "*" for everything; a name, an address or a
// range of them ("10.0.0.0/8"), each with or without a port ("mirror.example.org:443",
// "[2001:db8::]/32", "[2001:db8::1]:53"); "host" is the host itself.
func ParseRules(destinations []string) (Rules, error) {
	var rs Rules
	for _, d := range destinations {
		if d == Everything {
			rs.all = true
			continue
		}
		r, err := parseRule(strings.ToLower(strings.TrimSuffix(d, ".")))
		if err != nil {
			return Rules{}, fmt.Errorf("%q is not a destination: %w; give a name, an address or a range such as 10.0.0.0/8, with or without a port (\"mirror.example.org:443\")", d, err)
		}
		rs.rules = append(rs.rules, r)
	}
	return rs, nil
}

func parseRule(d string) (rule, error) {
	host, port, err := splitPort(d)
	if err != nil {
		return rule{}, err
	}
	bare := strings.NewReplacer("[", "", "]", "").Replace(host)
	if p, err := netip.ParsePrefix(bare); err == nil {
		return rule{prefix: p.Masked(), port: port}, checkPrefix(p)
	}
	if a, err := netip.ParseAddr(bare); err == nil {
		p := netip.PrefixFrom(a.WithZone(""), a.BitLen())
		return rule{prefix: p, port: port}, checkPrefix(p)
	}
	switch {
	case strings.Contains(host, "/"):
		return rule{}, fmt.Errorf("%q is not a range of addresses", host)
	case !hostPattern.MatchString(host):
		return rule{}, fmt.Errorf("%q is not a name", host)
	}
	return rule{name: host, port: port}, nil
}

// checkPrefix refuses addresses that no connection is ever made to, so that nobody looks for
// the reason in a test.
func checkPrefix(p netip.Prefix) error {
	for _, n := range nowhere {
		if n.Bits() <= p.Bits() && n.Overlaps(p) {
			return fmt.Errorf("%v is not an address on a network; %q is this host", p, HostName)
		}
	}
	if p.IsSingleIP() && isGateway(p.Addr()) {
		return fmt.Errorf("%v is the loopback of this host; write %q", p.Addr(), HostName)
	}
	return nil
}

func isGateway(a netip.Addr) bool { return a == GatewayIPv4.Addr() || a == GatewayIPv6.Addr() }

// splitPort takes the port off a destination; an IPv6 address has one only
// behind brackets.
func splitPort(d string) (host string, port uint16, err error) {
	i := strings.LastIndexByte(d, ':')
	if i < 0 || strings.Count(d, ":") > 1 && !strings.HasPrefix(d, "[") || strings.HasSuffix(d, "]") ||
		strings.Contains(d[i:], "/") || strings.Contains(d[i:], "]") {
		return d, 0, nil
	}
	n, err := strconv.ParseUint(d[i+1:], 10, 16)
	if err != nil || n == 0 {
		return "", 0, fmt.Errorf("%q is not a port, 1 to 65535", d[i+1:])
	}
	return d[:i], uint16(n), nil
}

// decide reports whether a connection may be made to an address that has some of the
// names of the rules, and why not if a rule has it nevertheless.
func (rs Rules) decide(dst netip.AddrPort, k kind, has func(name string) bool) (allowed bool, why string) {
	matched := rs.all
	allowed = rs.all && k <= private
	for _, r := range rs.rules {
		if r.port != 0 && r.port != dst.Port() {
			continue
		}
		switch {
		case r.name == HostName:
			allowed = allowed || k == loopback || k == ofHost
		case r.name != "" && has(r.name):
			matched = true
			allowed = allowed || k == public
		case r.name == "" && r.prefix.Contains(dst.Addr()):
			matched = true
			allowed = allowed || k <= ofHost || k == restricted && r.prefix.IsSingleIP()
		}
	}
	if allowed || !matched {
		return allowed, ""
	}
	return false, k.why()
}

// allowsName reports whether a name may be asked for. Nobody's answer says what
// the name of this host is.
func (rs Rules) allowsName(name string) bool {
	if name == HostName {
		return false
	}
	for _, r := range rs.rules {
		if r.name == name {
			return true
		}
	}
	return rs.all
}
