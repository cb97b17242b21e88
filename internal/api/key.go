package api

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// identity is who a poll says it is, from its start to its end, whatever SetKey does meanwhile.
type identity struct {
	key     string
	header  http.Header
	secrets *redactor
}

// SetKey changes the key that polls send from now on; empty: none. Polls in flight keep theirs. The key before this one
// is still kept out of every text: an upstream may speak of it once more.
func (c *Client) SetKey(key string) error {
	value := key
	if c.keyHeader == "Authorization" && !strings.Contains(value, " ") {
		value = "Bearer " + value
	}
	if !httpguts.ValidHeaderFieldName(c.keyHeader) || !httpguts.ValidHeaderFieldValue(value) {
		return fmt.Errorf("upstream key: header %q and the key must be printable, on one line", c.keyHeader)
	}
	c.rekeying.Lock()
	defer c.rekeying.Unlock()
	before := c.identity.Load()
	if before != nil && before.key == key {
		return nil
	}
	id := &identity{key: key, header: maps.Clone(c.header)}
	secrets := slices.Clone(c.secrets)
	if before != nil && before.key != "" {
		secrets = append(secrets, before.key)
	}
	if key != "" {
		id.header[c.keyHeader] = []string{value}
		secrets = append(append(secrets, value, key), tokens(value)...)
	}
	id.secrets = newRedactor(secrets)
	c.identity.Store(id)
	return nil
}

// tokens are the secrets in a header's value: all of it, and the token of "Bearer token". What is shorter is no secret,
// and taking it out would garble messages.
func tokens(value string) []string {
	const least = 8
	whole := []string{value, value[strings.LastIndexByte(value, ' ')+1:]}
	return slices.DeleteFunc(whole, func(s string) bool { return len(s) < least })
}
