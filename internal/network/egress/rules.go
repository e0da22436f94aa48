package egress

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
)

// HostName is the name that stands for the host's loopback in rules.
const HostName = "host"

// Everything is the rule that allows every destination but link-local ones,
// where clouds keep the credentials of their machines.
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
// range of them ("10.0.0.0/8"), each with or without a port ("deb.debian.org:443",
// "[2001:db8::]/32", "[2001:db8::1]:53"); "host" is the host's loopback.
func ParseRules(destinations []string) (Rules, error) {
	var rs Rules
	for _, d := range destinations {
		if d == Everything {
			rs.all = true
			continue
		}
		r, err := parseRule(strings.ToLower(strings.TrimSuffix(d, ".")))
		if err != nil {
			return Rules{}, fmt.Errorf("%q is not a destination: %w; give a name, an address or a range such as 10.0.0.0/8, with or without a port (\"deb.debian.org:443\")", d, err)
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
		return rule{prefix: p.Masked(), port: port}, nil
	}
	if a, err := netip.ParseAddr(bare); err == nil {
		return rule{prefix: netip.PrefixFrom(a.WithZone(""), a.BitLen()), port: port}, nil
	}
	switch {
	case strings.Contains(host, "/"):
		return rule{}, fmt.Errorf("%q is not a range of addresses", host)
	case !hostPattern.MatchString(host):
		return rule{}, fmt.Errorf("%q is not a name", host)
	}
	return rule{name: host, port: port}, nil
}

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

// allows says whether a connection may be made to an address that the guest
// knows by these names.
func (rs Rules) allows(dst netip.AddrPort, names []string) bool {
	addr := dst.Addr().Unmap()
	for _, r := range rs.rules {
		if r.port != 0 && r.port != dst.Port() {
			continue
		}
		if r.name == "" && r.prefix.Contains(addr) {
			return true
		}
		for _, name := range names {
			if r.name != "" && r.name == name {
				return true
			}
		}
	}
	return rs.all && !addr.IsLinkLocalUnicast()
}

// allowsName says whether a name may be asked for.
func (rs Rules) allowsName(name string) bool {
	for _, r := range rs.rules {
		if r.name == name {
			return true
		}
	}
	return rs.all
}
