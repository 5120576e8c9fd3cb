package listener

import (
	"bytes"
	"strings"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// TestCodec: a message with more messages in it than there may be is refused, however
// deep they are, and takes no memory; all others are decoded, or refused as they were.
func TestCodec(t *testing.T) {
	list := func(n int) *structpb.ListValue {
		out := &structpb.ListValue{}
		for range n {
			out.Values = append(out.Values, structpb.NewNullValue())
		}
		return out
	}
	fields := func(n int) *structpb.Struct {
		out := &structpb.Struct{Fields: map[string]*structpb.Value{}}
		for i, v := range list(n).Values {
			out.Fields[string(rune('a'+i))] = v
		}
		return out
	}
	deep := structpb.NewListValue(list(3))
	c := Codec(5)
	for name, tc := range map[string]struct {
		in  proto.Message
		err bool
	}{
		"none":           {list(0), false},
		"the most":       {list(5), false},
		"one more":       {list(6), true},
		"of a map":       {fields(5), false},
		"of a map, more": {fields(6), true},
		"deep, the most": {deep, false},                                                      // a list and three values
		"deep, too many": {&structpb.ListValue{Values: []*structpb.Value{deep, deep}}, true}, // two values more each
	} {
		b, err := c.Marshal(tc.in)
		if err != nil {
			t.Fatal(err)
		}
		got := tc.in.ProtoReflect().New().Interface()
		err = c.Unmarshal(b, got)
		if (err != nil) != tc.err || err != nil && !strings.Contains(err.Error(), "at most 5 messages") {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil && !proto.Equal(got, tc.in) {
			t.Errorf("%s: it is %v", name, got)
		}
	}
	bomb := mem.BufferSlice{mem.SliceBuffer(bytes.Repeat([]byte{0x0a, 0}, 1<<20))}
	got := &structpb.ListValue{}
	if n := testing.AllocsPerRun(1, func() { _ = c.Unmarshal(bomb, got) }); n > 20 || len(got.Values) > 0 {
		t.Errorf("of what is refused %d values were made, and %v allocations", len(got.Values), n)
	}
	for name, b := range map[string]string{"a tag alone": "\x0a", "less than it says": "\x0a\x05x", "a text for a number": "\x08x"} {
		if err := Unmarshal([]byte(b), &wrapperspb.StringValue{}, 5); (proto.Unmarshal([]byte(b), &wrapperspb.StringValue{}) == nil) != (err == nil) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
