package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"
)

// relayEnv makes this program a bare TCP relay, in a process of its own as the
// others are: "listen,upstream,delay". The delay is what a round trip takes
// longer, "0s" for none.
const relayEnv = "PGPROXY_BENCH_RELAY"

func init() {
	args := strings.Split(os.Getenv(relayEnv), ",")
	if len(args) != 3 {
		return
	}
	delay, err := time.ParseDuration(args[2])
	if err == nil {
		err = relay(args[0], args[1], delay)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "relay:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// relay copies both ways, with no more than a goroutine each.
func relay(listen, upstream string, delay time.Duration) error {
	ln, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	for {
		client, err := ln.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer client.Close()
			server, err := net.Dial("tcp", upstream)
			if err != nil {
				return
			}
			defer server.Close()
			var up sync.WaitGroup
			up.Go(func() {
				io.Copy(server, client)
				server.(*net.TCPConn).CloseWrite()
			})
			if delay > 0 {
				copyLate(client, server, delay)
			} else {
				io.Copy(client, server)
			}
			client.Close()
			up.Wait()
		}()
	}
}

// copyLate copies, each piece so much later than it came.
func copyLate(dst io.Writer, src io.Reader, delay time.Duration) {
	type piece struct {
		b   []byte
		due time.Time
	}
	pieces := make(chan piece, 1024)
	go func() {
		defer close(pieces)
		for {
			b := make([]byte, 64<<10)
			n, err := src.Read(b)
			if err != nil {
				return
			}
			pieces <- piece{b[:n], time.Now().Add(delay)}
		}
	}()
	for p := range pieces {
		time.Sleep(time.Until(p.due))
		dst.Write(p.b) // an end is seen by the reader
	}
}
