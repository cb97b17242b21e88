package sim

import (
	"encoding/binary"
	"errors"
	"maps"
	"math"
	"slices"
)

// The three messages of tinker_public.proto that the SDK's work is made of, by hand: two encoders and a decoder are
// less than what generated code needs. Field numbers are those of the SDK, 0.25 to 0.38.

const protobufType = "application/x-protobuf"

const (
	wireVarint  = 0
	wireFixed64 = 1
	wireBytes   = 2
	wireFixed32 = 5

	stopReasonLength = 1
	dtypeFloat32     = 1
	dtypeInt64       = 2
)

type sequence struct {
	tokens   []int32
	logprobs []float32
}

func sampleResponse(sequences []sequence, promptLogprobs []float32) []byte {
	var out []byte
	for _, s := range sequences {
		var msg []byte
		msg = appendVarint(msg, 1, stopReasonLength)
		msg = appendBytes(msg, 2, packed(s.tokens))
		msg = appendBytes(msg, 3, packed(s.logprobs))
		out = appendBytes(out, 1, msg)
	}
	if promptLogprobs != nil {
		out = appendBytes(out, 2, packed(promptLogprobs))
	}
	return out
}

// forwardBackwardOutput is one ArrayRecord with the field "logprobs", a row for each datum.
func forwardBackwardOutput(logprobs [][]float32, metrics map[string]float64) []byte {
	var data []byte
	offsets := []int64{0}
	for _, row := range logprobs {
		data = append(data, packed(row)...)
		offsets = append(offsets, int64(len(data)))
	}
	var tensor []byte
	tensor = appendBytes(tensor, 1, data)
	tensor = appendBytes(tensor, 2, packed(offsets))
	tensor = appendVarint(tensor, 3, dtypeFloat32)

	record := appendBytes(nil, 2, appendBytes(appendBytes(nil, 1, []byte("logprobs")), 2, tensor))
	record = appendVarint(record, 3, uint64(len(logprobs)))

	out := appendBytes(nil, 1, []byte("ArrayRecord"))
	out = appendBytes(out, 2, record)
	for _, name := range slices.Sorted(maps.Keys(metrics)) {
		entry := appendBytes(nil, 1, []byte(name))
		entry = binary.AppendUvarint(entry, 2<<3|wireFixed64)
		entry = binary.LittleEndian.AppendUint64(entry, math.Float64bits(metrics[name]))
		out = appendBytes(out, 3, entry)
	}
	return out
}

type forwardBackwardRequest struct {
	modelID string
	seqID   int
	lossFn  string
	data    []datum
}

type datum struct {
	inputs  int // tokens
	targets []int64
	weights []float32
}

func parseForwardBackward(body []byte) (*forwardBackwardRequest, error) {
	req := new(forwardBackwardRequest)
	err := eachField(body, func(number int, value uint64, data []byte) error {
		switch number {
		case 1:
			req.modelID = string(data)
		case 2:
			req.seqID = int(value)
		case 3:
			d, err := parseDatum(data)
			req.data = append(req.data, d)
			return err
		case 4:
			req.lossFn = string(data)
		}
		return nil
	})
	return req, err
}

func parseDatum(msg []byte) (d datum, err error) {
	err = eachField(msg, func(number int, _ uint64, data []byte) error {
		switch number {
		case 1: // a Chunk, whose field 1 is text, whose field 1 is its tokens
			return eachField(data, func(number int, _ uint64, data []byte) error {
				if number != 1 {
					return nil
				}
				return eachField(data, func(number int, _ uint64, data []byte) error {
					if number == 1 {
						d.inputs += len(data) / 4
					}
					return nil
				})
			})
		case 2: // an entry of the map from names to tensors
			var name string
			var tensor []byte
			if err := eachField(data, func(number int, _ uint64, data []byte) error {
				switch number {
				case 1:
					name = string(data)
				case 2:
					tensor = data
				}
				return nil
			}); err != nil {
				return err
			}
			return d.setInput(name, tensor)
		}
		return nil
	})
	return d, err
}

func (d *datum) setInput(name string, tensor []byte) error {
	var dense []byte
	var dtype uint64
	if err := eachField(tensor, func(number int, value uint64, data []byte) error {
		switch number {
		case 1:
			dense = data
		case 3:
			dtype = value
		}
		return nil
	}); err != nil {
		return err
	}
	switch {
	case name == "target_tokens" && dtype == dtypeInt64:
		for ; len(dense) >= 8; dense = dense[8:] {
			d.targets = append(d.targets, int64(binary.LittleEndian.Uint64(dense)))
		}
	case name == "weights" && dtype == dtypeFloat32:
		for ; len(dense) >= 4; dense = dense[4:] {
			d.weights = append(d.weights, math.Float32frombits(binary.LittleEndian.Uint32(dense)))
		}
	}
	return nil
}

var errProto = errors.New("malformed protobuf")

// eachField visits the fields of a message: value for numbers, data for everything with a length.
func eachField(msg []byte, visit func(number int, value uint64, data []byte) error) error {
	for len(msg) > 0 {
		key, n := binary.Uvarint(msg)
		if n <= 0 || key>>3 == 0 {
			return errProto
		}
		msg = msg[n:]
		var value uint64
		var data []byte
		switch key & 7 {
		case wireVarint:
			if value, n = binary.Uvarint(msg); n <= 0 {
				return errProto
			}
		case wireFixed64:
			if n = 8; len(msg) < n {
				return errProto
			}
			value = binary.LittleEndian.Uint64(msg)
		case wireFixed32:
			if n = 4; len(msg) < n {
				return errProto
			}
			value = uint64(binary.LittleEndian.Uint32(msg))
		case wireBytes:
			size, prefix := binary.Uvarint(msg)
			if prefix <= 0 || size > uint64(len(msg)-prefix) {
				return errProto
			}
			n = prefix + int(size)
			data = msg[prefix:n]
		default:
			return errProto
		}
		msg = msg[n:]
		if err := visit(int(key>>3), value, data); err != nil {
			return err
		}
	}
	return nil
}

func appendVarint(dst []byte, number int, value uint64) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(dst, uint64(number)<<3|wireVarint), value)
}

func appendBytes(dst []byte, number int, data []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(number)<<3|wireBytes)
	dst = binary.AppendUvarint(dst, uint64(len(data)))
	return append(dst, data...)
}

// packed is what numpy calls tobytes: the values one after the other, little-endian.
func packed[T int32 | int64 | float32](values []T) []byte {
	out, err := binary.Append(nil, binary.LittleEndian, values)
	if err != nil {
		panic("sim: " + err.Error()) // every T has a fixed size
	}
	return out
}
