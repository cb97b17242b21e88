package sim

import (
	"encoding/json"
	"fmt"
	"strconv"
)

// idFormats are the shapes of request ids seen at real servers. Ids are opaque; these are here to prove it.
var idFormats = []string{"uuid", "train", "sample", "req", "req32", "fut", "hex", "int", "negative", "gw", "unload", "mixed"}

// formatID makes the n-th id of a format out of 128 bits.
func formatID(format string, n, hi, lo uint64) string {
	if format == "mixed" {
		format = idFormats[n%uint64(len(idFormats)-1)]
	}
	switch format {
	case "train":
		return fmt.Sprintf("%s:train:%d:0", uuid(hi, lo), n)
	case "sample":
		return fmt.Sprintf("%s:sample:%d:%d", uuid(hi, lo), n/100, n%100)
	case "req":
		return fmt.Sprintf("req_%016x", hi)
	case "req32":
		return fmt.Sprintf("req_%016x%016x", hi, lo)
	case "fut":
		return fmt.Sprintf("fut_%016x%016x", hi, lo)
	case "hex":
		return fmt.Sprintf("%016x%016x", hi, lo)
	case "int":
		return strconv.FormatInt(int64(hi>>1), 10)
	case "negative":
		return strconv.FormatInt(-1-int64(hi>>1), 10)
	case "gw":
		return fmt.Sprintf("gw:alias-%d:%016x", n%3, hi)
	case "unload":
		return uuid(hi, lo) + ":unload"
	default:
		return uuid(hi, lo)
	}
}

func uuid(hi, lo uint64) string {
	hi = hi&^0xf000 | 0x4000
	lo = lo&^(3<<62) | 2<<62
	return fmt.Sprintf("%08x-%04x-%04x-%04x-%012x", hi>>32, hi>>16&0xffff, hi&0xffff, lo>>48, lo&(1<<48-1))
}

// hash is a well-mixed function of seed, id and salt (FNV-1a, then the finaliser of splitmix64).
func hash(seed uint64, id string, salt uint64) uint64 {
	h := seed*0x9e3779b97f4a7c15 + 14695981039346656037
	for i := range len(id) {
		h = (h ^ uint64(id[i])) * 1099511628211
	}
	h += salt * 0x9e3779b97f4a7c15
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}

// unit maps a hash to [0, 1).
func unit(h uint64) float64 { return float64(h>>11) / (1 << 53) }

// Salts keep the decisions taken from one id independent of each other.
const (
	saltProfile uint64 = iota + 1
	saltResult
	saltMintHigh
	saltMintLow
	saltSpread = 1 << 32
	saltNoise  = 1 << 33
)

// appendString appends a JSON string.
func appendString(dst []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c > 0x7e || c == '"' || c == '\\' {
			quoted, _ := json.Marshal(s) // cannot fail for a string
			return append(dst, quoted...)
		}
	}
	dst = append(dst, '"')
	dst = append(dst, s...)
	return append(dst, '"')
}

// glob says whether s fits the pattern: * stands for any characters, ? for one. Unlike path.Match it has no
// separators and no errors, since ids have neither.
func glob(pattern, s string) bool {
	for pattern != "" {
		switch {
		case pattern[0] == '*':
			for i := range len(s) + 1 {
				if glob(pattern[1:], s[i:]) {
					return true
				}
			}
			return false
		case s == "", pattern[0] != '?' && pattern[0] != s[0]:
			return false
		}
		pattern, s = pattern[1:], s[1:]
	}
	return s == ""
}
