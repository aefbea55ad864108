package nodetest

import (
	"log"
	"net"
	"net/http/httptest"
	"net/netip"
	"sync"

	"tailscale.com/derp/derpserver"
	"tailscale.com/net/stun"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
	"tailscale.com/types/logger"
)

// relay is a DERP and a STUN server on loopback: how nodes find each other
// before, and in place of, a direct path.
type relay struct {
	derp *derpserver.Server
	web  *httptest.Server
	gate *gate // the web server's listener
	stun *net.UDPConn
	wg   sync.WaitGroup
}

func startRelay() (*relay, error) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	r := &relay{derp: derpserver.New(key.NewNode(), logger.Discard), stun: conn}
	r.web = httptest.NewUnstartedServer(derpserver.Handler(r.derp))
	r.web.Config.ErrorLog = log.New(discard{}, "", 0)
	r.gate = newGate(r.web.Listener)
	r.web.Listener = r.gate
	r.web.StartTLS()
	r.wg.Go(r.serveSTUN)
	return r, nil
}

func (r *relay) close() {
	r.web.CloseClientConnections()
	r.web.Close()
	r.derp.Close()
	r.stun.Close()
	r.wg.Wait()
}

// derpMap names the relay as the tailnet's only one.
func (r *relay) derpMap() *tailcfg.DERPMap {
	return &tailcfg.DERPMap{
		OmitDefaultRegions: true,
		Regions: map[int]*tailcfg.DERPRegion{1: {
			RegionID:   1,
			RegionCode: "loopback",
			RegionName: "Loopback",
			Nodes: []*tailcfg.DERPNode{{
				Name:             "1a",
				RegionID:         1,
				HostName:         "127.0.0.1",
				IPv4:             "127.0.0.1",
				IPv6:             "none",
				DERPPort:         r.web.Listener.Addr().(*net.TCPAddr).Port,
				STUNPort:         r.stun.LocalAddr().(*net.UDPAddr).Port,
				STUNTestIP:       "127.0.0.1",
				InsecureForTests: true,
			}},
		}},
	}
}

// serveSTUN answers binding requests until the socket is closed.
func (r *relay) serveSTUN() {
	buf := make([]byte, 1500)
	for {
		n, from, err := r.stun.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		tx, err := stun.ParseBindingRequest(buf[:n])
		if err != nil {
			continue
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		r.stun.WriteToUDPAddrPort(stun.Response(tx, from), from)
	}
}
