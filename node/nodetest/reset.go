package nodetest

import (
	"context"
	"encoding/binary"
	"time"

	"tailscale.com/net/packet"
)

// The TCP header's flags that we look at.
const (
	flagSYN = 0x02
	flagRST = 0x04
	flagACK = 0x10
)

// DialReset connects to a TCP address in the tailnet and resets the connection
// as soon as it stands, which closing it would not do: the reset is a packet
// of our own making. One DialReset runs at a time for each peer.
func (p *Peer) DialReset(ctx context.Context, addr string) error {
	p.resetting.Lock()
	defer p.resetting.Unlock()
	tun := p.srv.Sys().Tun.Get()
	handshake := make(chan []byte, 1)
	tun.InstallCaptureHook(func(path packet.CapturePath, _ time.Time, pkt []byte, _ packet.CaptureMeta) {
		if path == packet.SynthesizedToPeer && isLastOfHandshake(pkt) {
			select {
			case handshake <- append([]byte(nil), pkt...):
			default:
			}
		}
	})
	defer tun.InstallCaptureHook(nil)

	c, err := p.Dial(ctx, addr)
	if err != nil {
		return err
	}
	defer c.Close()
	select {
	case ack := <-handshake:
		return tun.InjectOutbound(resetAfter(ack))
	case <-ctx.Done():
		return ctx.Err()
	}
}

// isLastOfHandshake reports whether pkt is IPv4, TCP, and a bare ACK: a client
// that has sent nothing sends one, at the end of the handshake.
func isLastOfHandshake(pkt []byte) bool {
	if len(pkt) < 40 || pkt[0]>>4 != 4 || pkt[9] != 6 {
		return false
	}
	return pkt[int(pkt[0]&0xf)*4+13] == flagACK
}

// resetAfter makes the reset that follows the segment in pkt: the same
// addresses, ports and sequence number, with the flag and no options.
func resetAfter(pkt []byte) []byte {
	ihl := int(pkt[0]&0xf) * 4
	rst := make([]byte, 40)
	copy(rst, pkt[:20])
	copy(rst[20:], pkt[ihl:ihl+20])
	rst[0] = 4<<4 | 5
	binary.BigEndian.PutUint16(rst[2:], uint16(len(rst)))
	binary.BigEndian.PutUint16(rst[10:], 0)
	binary.BigEndian.PutUint16(rst[10:], ^sum16(0, rst[:20]))

	tcp := rst[20:]
	tcp[12] = 5 << 4
	tcp[13] = flagRST | flagACK
	binary.BigEndian.PutUint16(tcp[16:], 0)
	pseudo := uint32(6) + uint32(len(tcp))
	for i := 12; i < 20; i += 2 {
		pseudo += uint32(binary.BigEndian.Uint16(rst[i:]))
	}
	binary.BigEndian.PutUint16(tcp[16:], ^sum16(pseudo, tcp))
	return rst
}

// sum16 is the Internet checksum's sum of b, which has an even length.
func sum16(sum uint32, b []byte) uint16 {
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}
