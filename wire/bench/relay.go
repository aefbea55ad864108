package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
)

// relayEnv makes this program a bare TCP relay, in a process of its own as the
// others are: "listen,upstream".
const relayEnv = "PGPROXY_BENCH_RELAY"

func init() {
	listen, upstream, ok := strings.Cut(os.Getenv(relayEnv), ",")
	if !ok {
		return
	}
	if err := relay(listen, upstream); err != nil {
		fmt.Fprintln(os.Stderr, "relay:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// relay copies both ways, with no more than a goroutine each.
func relay(listen, upstream string) error {
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
			io.Copy(client, server)
			client.Close()
			up.Wait()
		}()
	}
}
