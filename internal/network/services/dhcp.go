package services

import (
	"net"
	"net/netip"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/insomniacslk/dhcp/rfc1035label"
)

// dhcp4 gives a network card its planned address (RFC 2131). Cards that the plan
// does not know get no answer.
func (h *Host) dhcp4(f packet) {
	req, err := dhcpv4.FromBytes(f.payload)
	if err != nil || f.src.Is6() || req.OpCode != dhcpv4.OpcodeBootRequest || !req.GatewayIPAddr.IsUnspecified() {
		return
	}
	lease, ok := h.leases[req.ClientHWAddr.String()]
	if !ok || !lease.IPv4.IsValid() {
		return
	}
	self := net.IP(h.config.IPv4.Addr().AsSlice())
	if chosen := req.ServerIdentifier(); chosen != nil && !chosen.Equal(self) {
		h.giveWay(serviceDHCP, f) // it takes another server's offer
		return
	}
	resp, err := dhcpv4.NewReplyFromRequest(req, dhcpv4.WithServerIP(self), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(self)))
	if err != nil {
		return
	}
	ip := net.IP(lease.IPv4.Addr().AsSlice())
	switch req.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		if h.others[serviceDHCP] {
			return
		}
		resp.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeOffer))
	case dhcpv4.MessageTypeRequest:
		wanted := req.RequestedIPAddress()
		if wanted == nil {
			wanted = req.ClientIPAddr // renewing
		}
		if !wanted.Equal(ip) {
			if h.others[serviceDHCP] {
				return // the address may be one of theirs
			}
			resp.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeNak))
			h.send4(resp, broadcast4, broadcastMAC)
			return
		}
		resp.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeAck))
	case dhcpv4.MessageTypeInform:
		resp.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeAck))
		h.configure4(resp, lease)
		h.send4(resp, f.src, f.srcMAC)
		return
	default:
		return // of release and decline there is nothing to remember
	}
	resp.YourIPAddr = ip
	resp.UpdateOption(dhcpv4.OptIPAddressLeaseTime(leaseTime))
	h.configure4(resp, lease)
	dst, mac := lease.IPv4.Addr(), req.ClientHWAddr
	if req.IsBroadcast() {
		dst, mac = broadcast4, broadcastMAC
	}
	h.send4(resp, dst, mac)
}

var broadcastMAC = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// configure4 adds what a guest needs beside its address.
func (h *Host) configure4(resp *dhcpv4.DHCPv4, lease Lease) {
	resp.UpdateOption(dhcpv4.OptSubnetMask(net.CIDRMask(lease.IPv4.Bits(), 32)))
	if !h.config.NoDNS {
		resp.UpdateOption(dhcpv4.OptDNS(h.config.IPv4.Addr().AsSlice()))
	}
	resp.UpdateOption(dhcpv4.OptHostName(lease.Name))
	if h.config.Domain != "" {
		resp.UpdateOption(dhcpv4.OptDomainName(h.config.Domain))
		resp.UpdateOption(dhcpv4.OptDomainSearch(&rfc1035label.Labels{Labels: []string{h.config.Domain}}))
	}
	if h.config.Router.Is4() {
		resp.UpdateOption(dhcpv4.OptRouter(h.config.Router.AsSlice()))
	}
}

func (h *Host) send4(resp *dhcpv4.DHCPv4, dst netip.Addr, mac net.HardwareAddr) {
	b := resp.ToBytes()
	if len(mac) != 6 || len(b) > maxDatagram {
		return
	}
	h.send(udp(h.config.MAC, mac, h.config.IPv4.Addr(), dst, portDHCP, portDHCPClient, b))
}

// dhcp6 does the same for IPv6 (RFC 8415). A client is its network card, whatever
// it calls itself.
func (h *Host) dhcp6(f packet) {
	message, err := dhcpv6.FromBytes(f.payload)
	if err != nil || f.src.Is4() {
		return
	}
	req, ok := message.(*dhcpv6.Message)
	lease, known := h.leases[f.srcMAC.String()]
	if !ok || !known || !lease.IPv6.IsValid() {
		return
	}
	self := &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: h.config.MAC}
	if chosen := req.Options.ServerID(); chosen != nil && !chosen.Equal(self) {
		h.giveWay(serviceDHCP6, f)
		return
	}
	if req.MessageType == dhcpv6.MessageTypeSolicit && h.others[serviceDHCP6] {
		return
	}
	resp := reply6(req)
	if resp == nil {
		return
	}
	resp.UpdateOption(dhcpv6.OptServerID(self))
	if !h.config.NoDNS {
		resp.UpdateOption(dhcpv6.OptDNS(h.config.IPv6.Addr().AsSlice()))
	}
	if h.config.Domain != "" {
		resp.UpdateOption(dhcpv6.OptDomainSearchList(&rfc1035label.Labels{Labels: []string{h.config.Domain}}))
	}
	h.assign6(req, resp, lease)
	h.answer(f, resp.ToBytes())
}

// reply6 is an empty answer of the right kind; nil for what is not answered.
func reply6(req *dhcpv6.Message) *dhcpv6.Message {
	var resp *dhcpv6.Message
	var err error
	switch req.MessageType {
	case dhcpv6.MessageTypeSolicit:
		if req.GetOneOption(dhcpv6.OptionRapidCommit) != nil {
			if resp, err = dhcpv6.NewReplyFromMessage(req); err == nil {
				resp.UpdateOption(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionRapidCommit})
			}
			break
		}
		resp, err = dhcpv6.NewAdvertiseFromSolicit(req)
	case dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeConfirm, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRebind,
		dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeInformationRequest, dhcpv6.MessageTypeDecline:
		resp, err = dhcpv6.NewReplyFromMessage(req)
	}
	if err != nil {
		return nil
	}
	return resp
}

// assign6 answers each of the client's identity associations.
func (h *Host) assign6(req, resp *dhcpv6.Message, lease Lease) {
	switch req.MessageType {
	case dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeConfirm, dhcpv6.MessageTypeDecline:
		resp.AddOption(&dhcpv6.OptStatusCode{StatusCode: iana.StatusSuccess})
		return
	case dhcpv6.MessageTypeInformationRequest:
		return
	}
	for _, ia := range req.Options.IANA() {
		resp.AddOption(&dhcpv6.OptIANA{IaId: ia.IaId, T1: leaseTime / 2, T2: leaseTime / 4 * 3, Options: dhcpv6.IdentityOptions{Options: dhcpv6.Options{
			&dhcpv6.OptIAAddress{IPv6Addr: lease.IPv6.Addr().AsSlice(), PreferredLifetime: leaseTime, ValidLifetime: leaseTime},
		}}})
	}
	for _, ia := range req.Options.IAPD() {
		resp.AddOption(&dhcpv6.OptIAPD{IaId: ia.IaId, Options: dhcpv6.PDOptions{Options: dhcpv6.Options{
			&dhcpv6.OptStatusCode{StatusCode: iana.StatusNoPrefixAvail, StatusMessage: "no prefixes are delegated here"},
		}}})
	}
}
