package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"pgproxy/node/nodetest"
)

// dialTimeout bounds a connection's way through the tailnet.
const dialTimeout = 10 * time.Second

// door is a port on loopback that leads to one of pgproxy's ports from a person's
// device.
type door struct {
	port int
	to   string // pgproxy's address in the tailnet
	peer *nodetest.Peer

	ctx    context.Context // done when the door closes
	cancel context.CancelFunc
	ln     net.Listener
	wg     sync.WaitGroup
}

// openDoor opens a door at the first free port from port on, in steps that leave
// room for the other people's.
func openDoor(port int, to string, peer *nodetest.Peer) (*door, error) {
	const tries = 50
	step := len(people)
	for p := port; p < port+step*tries; p += step {
		ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", p))
		if err != nil {
			continue
		}
		d := &door{port: p, to: to, peer: peer, ln: ln}
		d.ctx, d.cancel = context.WithCancel(context.Background())
		d.wg.Go(d.serve)
		return d, nil
	}
	return nil, fmt.Errorf("no free port on 127.0.0.1 from %d on", port)
}

// close closes the door and what went through it.
func (d *door) close() {
	d.cancel()
	d.ln.Close()
	d.wg.Wait()
}

func (d *door) serve() {
	for {
		c, err := d.ln.Accept()
		if err != nil {
			return
		}
		d.wg.Go(func() { d.pass(c) })
	}
}

// pass carries one connection, until both directions have ended or the door
// closes.
func (d *door) pass(client net.Conn) {
	defer client.Close()
	ctx, cancel := context.WithTimeout(d.ctx, dialTimeout)
	proxy, err := d.peer.Dial(ctx, d.to)
	cancel()
	if err != nil {
		return
	}
	defer proxy.Close()
	stop := context.AfterFunc(d.ctx, func() {
		client.Close()
		proxy.Close()
	})
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { copyHalf(proxy, client) })
	wg.Go(func() { copyHalf(client, proxy) })
	wg.Wait()
}

// copyHalf carries one direction, and its end. Where that cannot be told, it
// ends both.
func copyHalf(to, from net.Conn) {
	_, err := io.Copy(to, from)
	half, ok := to.(interface{ CloseWrite() error })
	if err != nil || !ok || half.CloseWrite() != nil {
		to.Close()
		from.Close()
	}
}
