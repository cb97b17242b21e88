package sim

import "time"

// dialects are how the servers that package api has names for want to be asked, and how they answer.
var dialects = map[string]Script{
	"auto":   {KeyHeader: "X-API-Key"},
	"bearer": {KeyHeader: "Authorization"},
	"skyrl": {
		Unknown: "404", IDFormat: "int",
		Style: Style{Hold: 300 * time.Second, PendingStyle: "408_detail", FailureStyle: "400", ResultStyle: "bare"},
	},
	"tinkerbell": {
		Path: "/retrieve_future", Unknown: "404",
		Style: Style{PendingStyle: "202", FailureStyle: "500", ResultStyle: "bare"},
	},
	"tinkex": {
		Path: "/api/v1/future/retrieve", KeyHeader: "X-API-Key",
		Style: Style{FailureStyle: "enveloped", MetadataThreshold: 1 << 20},
	},
	"tuft": {
		KeyHeader: "X-API-Key", KeyRefusal: 403, Unknown: "404",
		Style: Style{Hold: 120 * time.Second, ResultStyle: "bare"},
	},
	"twinkle": {
		KeyHeader: "Authorization", RequireHeaders: []string{"X-Request-Id"}, Unknown: "try_again",
		Style: Style{Hold: 30 * time.Second, ResultStyle: "bare"},
	},
}

// Dialect is the script of a server that speaks as the dialect of this name in package api says; false: there is none.
func Dialect(name string) (Script, bool) {
	script, ok := dialects[name]
	return script, ok
}
