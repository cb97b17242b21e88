package api

import "unicode/utf8"

// appendQuery appends the JSON body of a poll.
func appendQuery(dst []byte, q Query) []byte {
	dst = append(dst, `{"request_id":"`...)
	dst = appendEscaped(dst, q.RequestID)
	if q.Full {
		return append(dst, `","allow_metadata_only":false}`...)
	}
	return append(dst, `","allow_metadata_only":true}`...)
}

func appendEscaped(dst []byte, s string) []byte {
	const hex = "0123456789abcdef"
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			dst = append(dst, '\\', byte(r))
		case r < ' ':
			dst = append(dst, '\\', 'u', '0', '0', hex[r>>4], hex[r&15])
		default:
			dst = utf8.AppendRune(dst, r) // an invalid byte arrives here as U+FFFD
		}
	}
	return dst
}
