package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"futurebridge/internal/poll"
)

const apiKeyVariable = "BRIDGE_API_KEY"

// readAPIKey finds the key: a file named on the command line, then BRIDGE_API_KEY, a file named elsewhere, and last
// TINKER_API_KEY, which other programs read too. No key is no error. On an error it also names the flag at fault.
func (c *serveConfig) readAPIKey() (key, flag string, err error) {
	own := os.Getenv(apiKeyVariable)
	switch {
	case c.APIKeyFile != "" && own != "" && c.given.rank("api-key-file") < byFlag:
		return "", "api-key-file", errors.New("contradicts BRIDGE_API_KEY, which is set too; leave one of them out")
	case c.APIKeyFile != "":
		key, err = readKeyFile(c.APIKeyFile)
		return key, "api-key-file", err
	}
	name := apiKeyVariable
	if own == "" {
		name = "TINKER_API_KEY"
	}
	key = strings.TrimSpace(os.Getenv(name))
	if !isHeaderValue(key) {
		c.given[name] = origin{byEnv, name}
		return "", name, errors.New("has more than one line, or a control character; put the key alone into it")
	}
	return key, "", nil
}

// readKeyFile repeats in its errors neither what is in the file nor its name: by mistake that is the key itself.
func readKeyFile(path string) (string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("%w; name a file that can be read", pathless(err))
	}
	key := strings.TrimSpace(string(text))
	if key == "" {
		return "", errors.New("the file is empty; put the key into it")
	}
	if !isHeaderValue(key) {
		return "", errors.New("the file has more than one line, or a control character; put the key alone into it")
	}
	return key, nil
}

func pathless(err error) error {
	if at := new(fs.PathError); errors.As(err, &at) {
		return at.Err
	}
	return err
}

// rereadEvery is no longer than the first wait of a hold, so that each of its probes is sent with the file's own key.
const rereadEvery = time.Second

// keyFile is the file that holds the API key. It is read again at SIGHUP and when the upstream refuses the key, so a new
// key needs no restart.
type keyFile struct {
	path string // empty: the key is from the environment, which does not change in a process
	use  func(key string) error
	log  *slog.Logger

	mu   sync.Mutex
	key  string
	read time.Time // when it was last read
	told string    // the last error that was told
}

// refused reads the file again. As many polls may be refused at a time as are in flight: the first one reads for all.
func (k *keyFile) refused() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.path != "" && time.Since(k.read) >= rereadEvery {
		k.reread()
	}
}

// hangUp is what SIGHUP asks for: another key, if there is one, and a poll with it at once.
func hangUp(k *keyFile, e *poll.Engine) {
	k.hangUp()
	e.Probe()
}

func (k *keyFile) hangUp() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.path == "" {
		k.log.Warn("SIGHUP reads the API key's file again, but there is none: a key from the environment stays as long as the process; use --api-key-file")
		return
	}
	if k.told = ""; !k.reread() && k.told == "" {
		k.log.Info("the API key is the same as before", "file", k.path)
	}
}

// reread keeps the key that there is when the file cannot be used, and tells the same trouble once.
func (k *keyFile) reread() (changed bool) {
	k.read = time.Now()
	key, err := readKeyFile(k.path)
	if err == nil && key != k.key {
		if err = k.use(key); err == nil {
			k.key, k.told = key, ""
			k.log.Info("the API key has changed: polls use the new one", "file", k.path)
			return true
		}
	}
	switch {
	case err == nil:
		k.told = ""
	case err.Error() != k.told:
		k.told = err.Error()
		k.log.Error("the API key cannot be read again: polls go on with the one before", "file", k.path, "error", err,
			"hint", "put the key alone into the file, in one line; SIGHUP reads it again")
	}
	return false
}
