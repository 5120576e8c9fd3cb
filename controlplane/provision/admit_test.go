package provision

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/store"
)

// TestManyAdmissions: admissions that come up at once are written, however large they are
// together.
func TestManyAdmissions(t *testing.T) {
	w := newWorld(t, nil)
	es := embedded("shop")
	var topics, subscriptions []*configv1.Resource
	for i := range 100 {
		topics = append(topics, topic(fmt.Sprintf("orders.%03d", i), es)...)
	}
	for i := range 60 {
		subscriptions = append(subscriptions, subscription("shop", fmt.Sprintf("worker-%03d", i), ">"))
	}
	w.put(append(topics[:100:100], es)...)
	w.put(topics[100:]...)
	w.put(subscriptions...)
	snap := w.pass()
	for _, s := range subscriptions {
		if n := len(snap.Resource("subscriptionadmission/shop/" + s.Metadata.Name).GetSubscriptionAdmission().GetSources()); n != 100 {
			t.Errorf("%s reads %d of 100 topics; %q", s.Name, n, w.condition(s.Name))
		}
	}
}

// failing is a driver whose stores cannot be opened, for a reason of some length.
type failing struct {
	store.Driver
	why string
}

func (f failing) Open(context.Context, store.Config) (store.Store, error) {
	return nil, errors.New(f.why)
}

// TestAdmissionTooLarge: a Subscription whose admission no transaction takes says so, and
// holds up nothing else, until it is smaller.
func TestAdmissionTooLarge(t *testing.T) {
	w := newWorld(t, failing{why: strings.Repeat("no ", 10_000)})
	main, other := kafka("shop", "main"), embedded("other")
	list := []*configv1.Resource{main, other, subscription("shop", "another", "orders.01"), subscription("other", "s", "t")}
	list = append(list, topic("t", other)...)
	for i := range 50 {
		list = append(list, topic(fmt.Sprintf("orders.%02d", i), main)...)
	}
	large := subscription("shop", "all", ">")
	w.put(append(list, large)...)
	w.pass()
	snap := w.pass()
	for name, want := range map[string]bool{"subscriptionadmission/shop/all": false, "subscriptionadmission/shop/another": true, "topicadmission/shop/orders.07": true,
		"subscriptionadmission/other/s": true, "topicadmission/other/t": true} {
		if got := snap.Get(name) != nil; got != want {
			t.Errorf("%s is there: %v, want %v", name, got, want)
		}
	}
	if got := w.condition(large.Name); got != "TooLarge" {
		t.Errorf("%s says %q", large.Name, got)
	}
	large.GetSubscription().Topics = []string{"orders.01"}
	w.put(large)
	if snap = w.pass(); snap.Get("subscriptionadmission/shop/all") == nil || w.condition(large.Name) != "" {
		t.Errorf("the smaller one is there: %v, and says %q", snap.Get("subscriptionadmission/shop/all") != nil, w.condition(large.Name))
	}
}
