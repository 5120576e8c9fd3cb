package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/resource"
)

// raw sends and receives bytes as they are.
type raw struct{}

func (raw) Name() string { return "proto" }

func (raw) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }

func (raw) Unmarshal(b []byte, v any) error {
	*v.(*[]byte) = b
	return nil
}

// FuzzCalls: whatever bytes come as whichever call, the answer is a status that a
// client can read, in time, and what was there is there unless it was removed by a
// call that may.
func FuzzCalls(f *testing.F) {
	w := newWorld(f, 1)
	w.apply(eventStore("demo", "main", ""), topic("demo", "orders"))
	policy := policyOf("demo")
	seeds := map[string][]proto.Message{
		"Apply": {&adminv1.ApplyRequest{Resources: []*configv1.Resource{topic("demo", "x"), eventStore("demo", "y", "1")}, Delete: targets("topic/demo/x").Targets, PlannedRemovals: map[string]uint32{"demo": 1 << 31}},
			&adminv1.ApplyRequest{DryRun: true, Resources: []*configv1.Resource{policy, identityOf("demo"),
				{Metadata: &configv1.Metadata{Namespace: "demo", Name: "s", Version: "1", Uid: "u"}, Spec: &configv1.Resource_Subscription{Subscription: &configv1.Subscription{Topics: []string{"orders", "a.*"}, DeadLetterTopic: "d",
					Filter: &configv1.Filter{All: []*configv1.Filter{{Not: &configv1.Filter{Prefix: map[string]string{"type": "a"}}}}}, Delivery: &configv1.Subscription_Push{Push: &configv1.PushDelivery{Url: "https://x.example/"}}}}},
				{Metadata: &configv1.Metadata{Namespace: "demo", Name: "r"}, Spec: &configv1.Resource_Route{Route: &configv1.Route{Topic: "orders", Rules: []*configv1.RouteRule{{To: []*configv1.Destination{{Topic: "orders", Weight: 3}}}}}}}}}},
		"Delete":          {targets("topic/demo/x", "topic/demo/../x")},
		"Get":             {&adminv1.GetRequest{Name: "topic/demo/orders"}},
		"List":            {&adminv1.ListRequest{Kind: "topic", Namespace: "demo", PageSize: 2, PageToken: "dG9waWM"}},
		"Watch":           {&adminv1.WatchRequest{Kind: "topic", Namespace: "demo"}},
		"GetStatus":       {&adminv1.GetStatusRequest{Namespace: "demo", NodeId: "n", AtRevision: 3, MaxProxies: 3, MaxResources: 3, Kind: "topic"}, &adminv1.GetStatusRequest{Name: "topic/demo/orders"}},
		"ListHistory":     {&adminv1.ListHistoryRequest{Kind: "topic", Namespace: "demo", Name: "topic/demo/orders", Since: timestamppb.New(time.Unix(1, 0)), PageSize: 2, PageToken: "YQ"}},
		"Diff":            {&adminv1.DiffRequest{FromRevision: 2, ToRevision: 3, Kind: "topic", Namespace: "demo"}},
		"Rollback":        {&adminv1.RollbackRequest{ToRevision: 2, Namespace: "demo", DryRun: true}},
		"ExportSnapshot":  {&adminv1.ExportSnapshotRequest{Namespaces: []string{"demo"}}},
		"DeclareRestore":  {&adminv1.DeclareRestoreRequest{Reason: "why"}},
		"CommandProxies":  {&adminv1.CommandProxiesRequest{NodeIds: []string{"n"}, Command: adminv1.CommandProxiesRequest_COMMAND_DRAIN, Local: true}},
		"CreateJoinToken": {&adminv1.CreateJoinTokenRequest{NodeId: "n", Namespaces: []string{"demo"}, ExpiresAt: timestamppb.New(time.Unix(1<<33, 0))}},
		"ListNodes":       {&adminv1.ListNodesRequest{After: "a", MaxNodes: 2, Namespace: "demo"}}, "DeclareNodeDead": {&adminv1.DeclareNodeDeadRequest{NodeId: "n", Reason: "why"}}, "ReviveNode": {&adminv1.ReviveNodeRequest{NodeId: "n"}}, "ForgetNodes": {&adminv1.ForgetNodesRequest{NodeIds: []string{"n", "m"}}},
		"ListJoinTokens": {&adminv1.ListJoinTokensRequest{}}, "RevokeJoinTokens": {&adminv1.RevokeJoinTokensRequest{Ids: []string{"x"}}},
	}
	desc := adminv1.AdminService_ServiceDesc
	var calls []string
	streams := map[string]bool{}
	for _, m := range desc.Methods {
		calls = append(calls, m.MethodName)
	}
	for _, s := range desc.Streams {
		calls = append(calls, s.StreamName)
		streams[s.StreamName] = true
	}
	for i, call := range calls {
		if len(seeds[call]) == 0 {
			f.Fatalf("there is no seed for %s", call)
		}
		for _, m := range seeds[call] {
			b, err := proto.Marshal(m)
			w.must(err)
			f.Add(byte(i), b)
			f.Add(byte(i+1), b) // as another call
		}
		f.Add(byte(i), []byte{})
		f.Add(byte(i), []byte("\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"))
	}
	f.Fuzz(func(t *testing.T, n byte, data []byte) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		call := calls[int(n)%len(calls)]
		method := fmt.Sprintf("/%s/%s", desc.ServiceName, call)
		var answer []byte
		var err error
		if streams[call] {
			err = first(ctx, w.conns[0], method, data, &answer)
		} else {
			err = w.conns[0].Invoke(ctx, method, &data, &answer, grpc.ForceCodec(raw{}))
		}
		st, ok := status.FromError(err)
		if !ok {
			t.Fatalf("%s: %v is no status", call, err)
		}
		switch st.Code() {
		case codes.OK, codes.InvalidArgument, codes.FailedPrecondition, codes.NotFound, codes.Aborted, codes.PermissionDenied:
		case codes.Internal: // of bytes that are no message
			if !strings.Contains(st.Message(), "unmarshal") {
				t.Errorf("%s: %v", call, err)
			}
		default:
			t.Errorf("%s: %v", call, err)
		}
		if !utf8.ValidString(st.Message()) || len(st.Message()) > 2*maxRefusal {
			t.Errorf("%s: a message of %d bytes: %.200q", call, len(st.Message()), st.Message())
		}
		snap, err := w.stores[0].Current()
		if err != nil {
			t.Fatal(err)
		}
		for e := range snap.All("") {
			kind, ns, name, err := resource.Split(e.Name)
			if err != nil || kind != e.Kind || ns != e.Namespace || name == "" {
				t.Errorf("%s: there is %q", call, e.Name)
			}
		}
	})
}

// first is the first answer of a stream, or its error.
func first(ctx context.Context, conn *grpc.ClientConn, method string, data []byte, answer *[]byte) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method, grpc.ForceCodec(raw{}))
	if err != nil {
		return err
	}
	if err := s.SendMsg(&data); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	_ = s.CloseSend()
	if err := s.RecvMsg(answer); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}
