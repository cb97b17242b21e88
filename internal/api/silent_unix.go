//go:build unix

package api

import (
	"net"
	"syscall"
)

const ownConnections = true

// silent reports whether the other side of an idle connection has neither ended it nor said anything. Of a connection that has
// no descriptor it is not known; writing to one that was ended fails.
func silent(conn net.Conn) bool {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return true
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	quiet := false
	err = raw.Read(func(fd uintptr) bool {
		var b [1]byte
		_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		quiet = err == syscall.EAGAIN || err == syscall.EINTR
		return true // whatever it was
	})
	return err == nil && quiet
}
