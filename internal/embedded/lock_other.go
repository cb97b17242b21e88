//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package embedded

import "os"

// lockFile does nothing where there is no flock: there, nothing stops two servers from sharing a directory.
func lockFile(*os.File) error { return nil }
