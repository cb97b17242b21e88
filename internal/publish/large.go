package publish

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"slices"
	"strconv"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
)

// maxChunk is how much of an object goes into one message, if the connection carries that much.
const maxChunk = 512 << 10

// upload puts a body into the object store under a name of its own, for as long as it takes.
//
// It writes the object's messages itself. The library's Put sends chunks that nobody took at first again from a buffer
// that has been reused by then, and reports success: what is stored cannot be read.
func (p *Publisher) upload(ctx context.Context, id string, body []byte) (*LargeRef, error) {
	size := int(min(maxChunk, p.nc.MaxPayload()/2))
	info := jetstream.ObjectInfo{
		ObjectMeta: jetstream.ObjectMeta{
			Name: Token(id) + "." + nuid.Next(), Description: "result",
			Opts: &jetstream.ObjectMetaOptions{ChunkSize: uint32(size)},
		},
		Bucket: p.names.LargeBucket(), NUID: nuid.Next(), Size: uint64(len(body)), Digest: digest(body),
	}
	prefix := "$O." + p.names.LargeBucket()
	var last uint64
	for chunk := range slices.Chunk(body, size) {
		var err error
		if last, err = p.put(ctx, prefix+".C."+info.NUID, last, chunk); err != nil {
			return nil, err
		}
		info.Chunks++
	}
	_, err := p.put(ctx, prefix+".M."+base64.URLEncoding.EncodeToString([]byte(info.Name)), 0, marshal(info))
	return &LargeRef{Object: info.Name, Bytes: int64(len(body)), Digest: info.Digest}, err
}

// put appends to a subject that nobody else knows: a conflict can only mean that an earlier attempt was stored.
func (p *Publisher) put(ctx context.Context, subject string, last uint64, data []byte) (seq uint64, err error) {
	header := nats.Header{nats.ExpectedLastSubjSeqHdr: {strconv.FormatUint(last, 10)}}
	ack, err := p.publish(ctx, &nats.Msg{Subject: subject, Header: header, Data: data}, nil, false)
	return ack.seq, err
}

// discard deletes the object of a result that lost a race; what cannot be deleted goes by the bucket's age.
func (p *Publisher) discard(ctx context.Context, large *LargeRef) {
	if large == nil {
		return
	}
	bucket, err := p.js.ObjectStore(ctx, p.names.LargeBucket())
	if err == nil {
		err = bucket.Delete(ctx, large.Object)
	}
	if err != nil {
		p.log.Warn("an object that nothing refers to stays until the bucket's max age", "bucket", p.names.LargeBucket(), "object", large.Object, "error", err)
	}
}

// digest is a body's SHA-256 as the object store writes it.
func digest(body []byte) string {
	sum := sha256.Sum256(body)
	return "SHA-256=" + base64.URLEncoding.EncodeToString(sum[:])
}
