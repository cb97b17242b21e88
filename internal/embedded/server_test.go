package embedded

import (
	"bytes"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"futurebridge/internal/testbed"
)

func TestMain(m *testing.M) { testbed.Main(m) }

func TestStoredMessagesSurviveARestart(t *testing.T) {
	dir := t.TempDir()
	testbed.Bubble(t, func(t *testing.T) {
		s, err := Start(Options{StoreDir: dir})
		require.NoError(t, err)
		require.Empty(t, s.ClientURL())
		nc := connect(t, s)
		js, err := jetstream.New(nc)
		require.NoError(t, err)
		_, err = js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "A", Subjects: []string{"a"}})
		require.NoError(t, err)
		_, err = js.Publish(t.Context(), "a", []byte("kept"))
		require.NoError(t, err)
		nc.Close()
		s.Shutdown()
		s.Shutdown() // is harmless

		s, err = Start(Options{StoreDir: dir})
		require.NoError(t, err)
		defer s.Shutdown()
		nc = connect(t, s)
		defer nc.Close()
		js, err = jetstream.New(nc)
		require.NoError(t, err)
		stream, err := js.Stream(t.Context(), "A")
		require.NoError(t, err)
		msg, err := stream.GetMsg(t.Context(), 1)
		require.NoError(t, err)
		require.Equal(t, "kept", string(msg.Data))
		time.Sleep(time.Hour) // virtual: the server idles in a bubble without a deadlock
	})
}

func connect(t *testing.T, s *Server) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect("", nats.InProcessServer(s.InProcess()))
	require.NoError(t, err)
	return nc
}

func TestOtherProcessesConnectOverTheNetwork(t *testing.T) {
	var log bytes.Buffer
	s, err := Start(Options{StoreDir: t.TempDir(), Listen: "127.0.0.1:0", Log: slog.New(slog.NewTextHandler(&log, nil))})
	require.NoError(t, err)
	defer s.Shutdown()
	nc, err := nats.Connect(s.ClientURL())
	require.NoError(t, err)
	nc.Close()
	require.NotContains(t, log.String(), "authentication", "loopback needs no warning")
}

func TestListeningToTheWorldWithoutAuthenticationIsWarnedOf(t *testing.T) {
	var log bytes.Buffer
	s, err := Start(Options{StoreDir: t.TempDir(), Listen: "0.0.0.0:0", Log: slog.New(slog.NewTextHandler(&log, nil))})
	require.NoError(t, err)
	s.Shutdown()
	require.Contains(t, log.String(), "no authentication")
}

func TestAStartThatCannotWorkSaysWhatToChange(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { require.NoError(t, taken.Close()) }()
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	used := t.TempDir()
	owner, err := Start(Options{StoreDir: used})
	require.NoError(t, err)
	defer owner.Shutdown()

	for _, c := range []struct {
		name string
		o    Options
		want string
	}{
		{"port taken", Options{StoreDir: t.TempDir(), Listen: taken.Addr().String()}, "taken by another program"},
		{"no port", Options{StoreDir: t.TempDir(), Listen: "127.0.0.1"}, "want host:port"},
		{"port out of range", Options{StoreDir: t.TempDir(), Listen: "127.0.0.1:70000"}, "no number from 0 to 65535"},
		{"not an address of this host", Options{StoreDir: t.TempDir(), Listen: "192.0.2.1:0"}, "cannot listen on 192.0.2.1:0"},
		{"no directory", Options{}, "needs a store directory"},
		{"directory below a file", Options{StoreDir: filepath.Join(file, "x")}, "cannot be made"},
		{"directory in use", Options{StoreDir: used}, "in use by another process"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Start(c.o)
			require.ErrorContains(t, err, c.want)
		})
	}
	nc := connect(t, owner)
	nc.Close()
}

func TestTheDiskHasWhatIsAcknowledgedUnlessToldOtherwise(t *testing.T) {
	for _, later := range []bool{false, true} {
		s, err := Start(Options{StoreDir: t.TempDir(), SyncLater: later})
		require.NoError(t, err)
		require.Equal(t, !later, s.nats.JetStreamConfig().SyncAlways)
		s.Shutdown()
	}
}
