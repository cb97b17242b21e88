package api

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

func TestAnErrorIsReadInEveryForm(t *testing.T) {
	for _, c := range []struct {
		name, body string
		want       Failure // its Type is always RequestFailed
	}{
		{"a string", `{"error":"no"}`, Failure{Category: Unknown, Message: "no"}},
		{"a string beside a category", `{"error":"no","category":"user"}`, Failure{Category: User, Message: "no"}},
		{"an object", `{"error":{"message":"no","category":"server"}}`, Failure{Category: Server, Message: "no"}},
		{"an object without a category, beside one", `{"error":{"message":"no"},"category":"user"}`, Failure{Category: User, Message: "no"}},
		{"an object with a null category, beside one", `{"error":{"message":"no","category":null},"category":"user"}`, Failure{Category: User, Message: "no"}},
		{"an object's category outranks the one beside it", `{"error":{"message":"no","category":"server"},"category":"user"}`, Failure{Category: Server, Message: "no"}},
		{"an object without a message", `{"error":{"code": 7}}`, Failure{Category: Unknown, Message: `{"code": 7}`}},
		{"an object whose message is an object", `{"error":{"message":{"a":1}}}`, Failure{Category: Unknown, Message: `{"a":1}`}},
		{"a list", `{"error":[1,"b"]}`, Failure{Category: Unknown, Message: `[1,"b"]`}},
		{"a number", `{"error":12345678901234567890}`, Failure{Category: Unknown, Message: `12345678901234567890`}},
		{"false", `{"error":false}`, Failure{Category: Unknown, Message: `false`}},
		{"error_message", `{"error_message":"no","category":"Application"}`, Failure{Category: Server, RawCategory: "Application", Message: "no"}},
		{"error_message as an object", `{"error_message":{"message":"no","category":"user"}}`, Failure{Category: User, Message: "no"}},
		{"error outranks error_message", `{"error_message":"b","error":"a"}`, Failure{Category: Unknown, Message: "a"}},
		{"an empty error is passed over", `{"error":"","error_message":"b"}`, Failure{Category: Unknown, Message: "b"}},
		{"detail", `{"status":"failed","detail":"no"}`, Failure{Category: Unknown, Message: "no"}},
		{"detail as an object", `{"status":"failed","detail":{"message":"no","category":"user_error"}}`, Failure{Category: User, RawCategory: "user_error", Message: "no"}},
		{"detail as a list", `{"status":"failed","detail":[{"msg":"no"}]}`, Failure{Category: Unknown, Message: `[{"msg":"no"}]`}},
		{"message", `{"status":"failed","message":"no"}`, Failure{Category: Unknown, Message: "no"}},
		{"nothing", `{"status":"failed"}`, Failure{Category: Unknown, Message: `OK: {"status":"failed"}`}},
		{"an empty one", `{"error":""}`, Failure{Category: Unknown, Message: `OK: {"error":""}`}},
		{"with escapes", `{"error":"a\n\u00e4\ud83d\ude00\"\/"}`, Failure{Category: Unknown, Message: "a\nä😀\"/"}},
		{"of a key that is there twice the last counts", `{"error":"a","error":"b"}`, Failure{Category: Unknown, Message: "b"}},
		{"of a key with escapes", `{"\u0065rror":"a"}`, Failure{Category: Unknown, Message: "a"}},
		{"a null category", `{"error":"no","category":null}`, Failure{Category: Unknown, Message: "no"}},
		{"a category of another type", `{"error":"no","category":{"a": 1}}`, Failure{Category: Unknown, RawCategory: `{"a": 1}`, Message: "no"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := classify(said(200, c.body))
			require.Equal(t, Failed, got.Kind)
			c.want.Type = RequestFailed
			require.Equal(t, &c.want, got.Failure)
		})
	}
}

func TestACategoryIsReadInEverySpelling(t *testing.T) {
	for word, want := range map[string]Category{
		"user": User, "User": User, "USER": User, " user ": User, "user_error": User, "User_Error": User,
		"server": Server, "SERVER": Server, "server_error": Server, "Application": Server, "application": Server, "System": Server,
		"unknown": Unknown, "Unknown": Unknown, "": Unknown, "userish": Unknown, "billing": Unknown,
	} {
		for _, body := range []string{
			`{"error":"no","category":"` + word + `"}`,
			`{"status":"failed","error":{"message":"no","category":"` + word + `"}}`,
		} {
			got := classify(said(200, body)).Failure
			require.Equal(t, want, got.Category, word)
			if word == string(want) {
				require.Empty(t, got.RawCategory)
			} else {
				require.Equal(t, word, got.RawCategory, "the upstream's own word is kept")
			}
		}
	}
}

func TestTheStatusOutranksTheCategory(t *testing.T) {
	for _, c := range []struct {
		status    int
		odd, user Category // what is made of the words "odd" and "user"
	}{
		{400, User, User},
		{401, User, User},
		{403, User, User},
		{404, User, User},
		{410, User, User},
		{422, User, User},
		{429, Server, User},
		{500, Server, User},
		{503, Server, User},
		{302, Unknown, User},
	} {
		odd := classify(said(c.status, `{"error":"no","category":"odd"}`)).Failure
		require.Equal(t, &Failure{APIStatus, c.odd, "odd", "no"}, odd, c.status)
		user := classify(said(c.status, `{"error":"no","category":"user"}`)).Failure
		require.Equal(t, c.user, user.Category, c.status)
	}
}

func TestTextsAreBoundedAndValid(t *testing.T) {
	for name, piece := range map[string]string{"ascii": "x", "wide": "ä", "wider": "😀", "broken": "\xff", "broken and not": "a\xff"} {
		t.Run(name, func(t *testing.T) {
			for _, pad := range []string{"", "-", "--", "---"} {
				long := pad + strings.Repeat(piece, 2*maxScanned)
				pending := classify(said(200, `{"type":"try_again","queue_state_reason":"`+long+`"}`))
				failed := classify(said(200, `{"error":"`+long+`","category":"`+long+`"}`)).Failure
				listed := classify(said(200, `{"error":["`+long+`"]}`)).Failure
				for _, text := range []string{pending.Reason, failed.Message, failed.RawCategory, listed.Message} {
					require.True(t, utf8.ValidString(text))
					require.LessOrEqual(t, len(text), maxText)
					if name != "broken" { // all of that is one replacement character
						require.Greater(t, len(text), maxText-8)
					}
					require.True(t, strings.HasSuffix(text, "…"))
				}
				refused := classify(said(503, long)).Failure.Message
				require.True(t, utf8.ValidString(refused))
				require.LessOrEqual(t, len(refused), len("Service Unavailable: ")+200)
			}
		})
	}
	exact := strings.Repeat("x", maxText)
	require.Equal(t, exact, classify(said(200, `{"error":"`+exact+`"}`)).Failure.Message)
}
