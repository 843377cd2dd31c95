package main

import (
	"net"
	"sync"
	"time"
)

// proxy forwards connections to a server and delivers every byte later by delay, in each direction. It is a queue with a
// time for each piece, as a long wire is: any number of messages are under way at once, and none waits for another.
type proxy struct {
	listener        net.Listener
	network, target string
	delay           time.Duration

	mu     sync.Mutex
	conns  map[net.Conn]bool
	closed bool
	done   sync.WaitGroup
}

func startProxy(network, target string, delay time.Duration) (*proxy, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &proxy{listener: l, network: network, target: target, delay: delay, conns: make(map[net.Conn]bool)}
	p.done.Go(p.serve)
	return p, nil
}

func (p *proxy) port() uint16 { return p.listener.Addr().(*net.TCPAddr).AddrPort().Port() }

// Close ends all connections and waits for the goroutines that served them.
func (p *proxy) Close() {
	p.mu.Lock()
	p.closed = true
	_ = p.listener.Close()
	for c := range p.conns {
		_ = c.Close()
	}
	p.mu.Unlock()
	p.done.Wait()
}

func (p *proxy) serve() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.done.Go(func() { p.forward(client) })
	}
}

// keep notes a connection that Close has to end. It reports false, and closes c, where the proxy is closed already.
func (p *proxy) keep(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		_ = c.Close()
		return false
	}
	p.conns[c] = true
	return true
}

func (p *proxy) drop(c net.Conn) {
	_ = c.Close()
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
}

func (p *proxy) forward(client net.Conn) {
	if !p.keep(client) {
		return
	}
	defer p.drop(client)
	server, err := net.Dial(p.network, p.target)
	if err != nil || !p.keep(server) {
		return
	}
	defer p.drop(server)
	var both sync.WaitGroup
	both.Go(func() { p.copy(server, client) })
	both.Go(func() { p.copy(client, server) })
	both.Wait()
}

// piece is what one Read returned and when it is due at the other end.
type piece struct {
	buf []byte
	due time.Time
}

// inFlight bounds the pieces under way in one direction. It is far above what a delay of some milliseconds collects.
const inFlight = 512

func (p *proxy) copy(dst, src net.Conn) {
	w, err := newWaiter()
	if err != nil {
		_, _ = dst.Close(), src.Close()
		return
	}
	defer w.close()
	queue := make(chan piece, inFlight)
	free := make(chan []byte, inFlight) // buffers are used again, so that forwarding does not allocate
	p.done.Go(func() {
		defer close(queue)
		for {
			var buf []byte
			select {
			case buf = <-free:
			default:
				buf = make([]byte, 16<<10)
			}
			n, err := src.Read(buf)
			if n > 0 {
				queue <- piece{buf[:n], time.Now().Add(p.delay)}
			}
			if err != nil {
				return
			}
		}
	})
	failed := false
	for piece := range queue {
		w.until(piece.due)
		if !failed {
			if _, err := dst.Write(piece.buf); err != nil {
				failed = true
				_ = src.Close() // the reader stops; what it has read is dropped
			}
		}
		select {
		case free <- piece.buf[:cap(piece.buf)]:
		default:
		}
	}
	if c, ok := dst.(interface{ CloseWrite() error }); ok {
		_ = c.CloseWrite() // the other direction may go on
	}
}
