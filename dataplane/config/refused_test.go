package config

import (
	"fmt"
	"strings"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"

	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"
)

// TestRefusesMany: however much is refused, and however much there is to say of it, the
// answer is one that a control plane takes, and the rest is in force.
func TestRefusesMany(t *testing.T) {
	srv := startDelta(t, "127.0.0.1:0")
	f := follow(t, "", srv.addr)
	st := srv.accept(t)
	const many = 1500
	holds := map[string]string{nameA: "5"}
	rs := []*discoveryv3.Resource{wire(storeRes("a", "1", testUID), "5")}
	for i := range many {
		r := storeRes(fmt.Sprintf("bad%d", i), "bad", fmt.Sprint("u", i))
		r.Metadata.Labels["why"] = strings.Repeat("é", 1700)
		holds[r.Name] = "5"
		if rs = append(rs, wire(r, "5")); len(rs) == 500 {
			st.send(rs)
			rs = nil
		}
	}
	answer := st.send(append(rs, closing("1-x", 5, true, holds)))
	if n := proto.Size(answer); n > 2<<20 {
		t.Errorf("the answer has %d bytes", n)
	}
	said := &discoveryv1.Rejections{}
	for _, d := range answer.ErrorDetail.GetDetails() {
		if err := d.UnmarshalTo(said); err != nil {
			t.Fatal(err)
		}
	}
	if len(said.Rejections) != 1000 || !strings.HasPrefix(said.Rejections[0].Reason, "is not to this proxy's taste") {
		t.Errorf("%d are refused: %v", len(said.Rejections), answer.ErrorDetail.GetMessage())
	}
	if s := f.states.Get(); s.label(nameA) != "1" || len(s.Withheld) != many {
		t.Errorf("%d are withheld, %d in force", len(s.Withheld), len(s.Set))
	}
}
