package census

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func at(seconds int) *timestamppb.Timestamp {
	return timestamppb.New(start.Add(time.Duration(seconds) * time.Second))
}

// proxy is a connected one that has revision 10.
func proxy(id string, change ...func(*adminv1.ProxyStatus)) *adminv1.ProxyStatus {
	p := &adminv1.ProxyStatus{NodeId: id, Connected: true, ConnectedAt: at(0), AckedRevision: 10, SentRevision: 10}
	for _, f := range change {
		f(p)
	}
	return p
}

func gone(p *adminv1.ProxyStatus)   { p.Connected, p.LastSeen = false, at(0) }
func behind(p *adminv1.ProxyStatus) { p.AckedRevision = 9 }
func refusing(p *adminv1.ProxyStatus) {
	p.Rejections = append(p.Rejections, &discoveryv1.Rejection{Name: "topic/demo/x", Version: "10", Reason: "no"})
}
func notSent(p *adminv1.ProxyStatus) {
	p.Withheld = append(p.Withheld, &configv1.Withheld{Name: "quota/demo/x", Reason: "kind quota"})
}
func denies(p *adminv1.ProxyStatus) {
	p.Report = &discoveryv1.ReportStatusRequest{Config: &discoveryv1.AppliedConfig{Lineage: "1-a", Revision: 10, Withheld: []string{"topic/demo/y"}}}
}
func elsewhere(p *adminv1.ProxyStatus) {
	p.Report = &discoveryv1.ReportStatusRequest{Config: &discoveryv1.AppliedConfig{Lineage: "0-old", Revision: 99}}
}
func storeless(p *adminv1.ProxyStatus) {
	p.Report = &discoveryv1.ReportStatusRequest{Stores: []*discoveryv1.StoreState{{Name: "eventstore/demo/main", Reason: "NotOpen"}}}
}

// TestSummary: a proxy has a revision when it has acknowledged it, of this
// lineage, refuses nothing, and nothing is kept from it. Those that lack something
// come first.
func TestSummary(t *testing.T) {
	list := []*adminv1.ProxyStatus{proxy("j-fine"), proxy("i-fine"), proxy("h-storeless", storeless), proxy("g-gone", gone), proxy("f-not-sent", notSent), proxy("e-denies", denies),
		proxy("d-behind", behind), proxy("c-elsewhere", elsewhere), proxy("b-refusing-behind", refusing, behind), proxy("a-gone-behind", gone, behind)}
	sum := Summarize(list, "1-a", 10)
	want := &adminv1.FleetSummary{Known: 10, Connected: 8, Current: 3, Behind: 3, Refusing: 1, Withheld: 2, Disconnected: 2}
	if !proto.Equal(sum, want) {
		t.Errorf("%v, want %v", sum, want)
	}
	Sort(list, "1-a", 10)
	var ids []string
	for _, p := range list {
		ids = append(ids, p.NodeId)
	}
	if got := strings.Join(ids, " "); got != "b-refusing-behind c-elsewhere d-behind e-denies f-not-sent a-gone-behind g-gone h-storeless i-fine j-fine" {
		t.Error(got)
	}
	if sum := Summarize(list, "1-a", 11); sum.Current != 0 || sum.Behind != 8 {
		t.Errorf("of a revision that nobody has: %v", sum)
	}
}

// TestMerge: of a node the newest connection counts, be it told first or last;
// without one, what was seen last.
func TestMerge(t *testing.T) {
	set := func(replica string, connected bool, seconds int) []*adminv1.ProxyStatus {
		return []*adminv1.ProxyStatus{{NodeId: "n", Connected: connected, ConnectedAt: at(seconds), LastSeen: at(seconds), Replica: replica}}
	}
	for want, lists := range map[string][][]*adminv1.ProxyStatus{
		"newer":     {set("older", true, 1), set("newer", true, 2)},
		"connected": {set("seen later", false, 9), set("connected", true, 2)},
		"later":     {set("later", false, 9), set("earlier", false, 2)},
	} {
		for range 2 {
			if got := Merge(lists...); len(got) != 1 || got[0].Replica != want {
				t.Errorf("want %s, got %v", want, got)
			}
			slices.Reverse(lists)
		}
	}
}

// TestFit: however many proxies there are, and however much they refuse, an answer
// stays below what a client takes, and all of them are counted as before. Few are
// shown in full; nothing that is shown is changed.
func TestFit(t *testing.T) {
	long := strings.Repeat("ü", maxText/2)
	big := func(i int) *adminv1.ProxyStatus {
		p := proxy(fmt.Sprintf("node-%05d", i), denies, notSent)
		p.Info = &discoveryv1.NodeInfo{Version: "v1", Capabilities: []string{long, long}, AdvertiseHost: fmt.Sprintf("10.0.%d.%d", i/256, i%256),
			Ports: map[string]uint32{"http": 7410, "grpc": 7411, "health": 7418}, Namespaces: []string{"demo", "shop"}}
		for range 20 {
			p.Rejections = append(p.Rejections, &discoveryv1.Rejection{Name: "topic/demo/x", Version: "10", Field: long, Reason: long})
		}
		return p
	}
	var list []*adminv1.ProxyStatus
	for i := range 20000 {
		list = append(list, big(i))
	}
	out := Fit(list, 20000)
	resp := &adminv1.GetStatusResponse{Proxies: out}
	if n := proto.Size(resp); len(out) != 20000 || n > MaxAnswer*3/4 {
		t.Errorf("%d proxies in %d bytes", len(out), n)
	}
	for i, p := range out {
		if whole := list[i].Info; p.Info.AdvertiseHost != whole.AdvertiseHost || p.Info.Ports["grpc"] != 7411 || len(p.Info.Namespaces) != 2 {
			t.Fatalf("the %d. proxy is not to be reached: %v", i, p.Info)
		}
	}
	if got, want := Summarize(out, "1-a", 10), Summarize(list, "1-a", 10); !proto.Equal(got, want) {
		t.Errorf("%v, of the whole %v", got, want)
	}
	if b, err := proto.Marshal(resp); err != nil {
		t.Errorf("%d bytes: %v", len(b), err)
	}
	if got := Fit(list, 5); len(got) != 5 || !proto.Equal(got[4], big(4)) {
		t.Error("few are not shown in full")
	}
	if !proto.Equal(list[19999], big(19999)) {
		t.Error("what was shown in short was changed")
	}
}
