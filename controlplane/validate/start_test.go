package validate

import (
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/position"
)

// TestStart: where a subscription begins is judged when it is created, and fixed then.
func TestStart(t *testing.T) {
	v, err := New()
	if err != nil {
		t.Fatal(err)
	}
	const orders, bills, others = "00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002", "00000000-0000-4000-8000-000000000003"
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	topic := func(ns, name, uid string) []*configv1.Resource {
		r := inDemo(name, &configv1.Resource{Spec: &configv1.Resource_Topic{Topic: &configv1.Topic{Store: "main"}}})
		b := inDemo(name, &configv1.Resource{Spec: &configv1.Resource_TopicBinding{TopicBinding: &configv1.TopicBinding{TopicUid: uid, Epochs: []*configv1.Epoch{{Number: 2}}}}})
		r.Metadata.Uid, r.Metadata.Namespace, b.Metadata.Namespace = uid, ns, ns
		return []*configv1.Resource{r, b}
	}
	before := slices.Concat(topic("demo", "orders", orders), topic("demo", "bills", bills), topic("other", "orders", others))
	sub := func(s *configv1.Subscription) *configv1.Resource {
		s.Topics = []string{"orders"}
		r := inDemo("late", &configv1.Resource{Spec: &configv1.Resource_Subscription{Subscription: s}})
		r.Metadata.CreatedAt = timestamppb.New(now)
		return r
	}
	at := func(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(now.Add(d)) }
	tok := func(uid string, epoch uint32, partition string, offset uint64) string {
		return position.Token{TopicUID: uid, Epoch: epoch, Pos: store.Position{Partition: partition, Offset: offset}}.String()
	}
	const end, beginning = configv1.Start_START_END, configv1.Start_START_BEGINNING
	good := tok(orders, 2, "a/0", 7)
	for name, tc := range map[string]struct {
		was, is *configv1.Subscription
		field   string // that is refused; "" for none
	}{
		"a time":                   {is: &configv1.Subscription{StartAt: at(-time.Hour)}},
		"now":                      {is: &configv1.Subscription{StartAt: at(0)}},
		"a time to come":           {is: &configv1.Subscription{StartAt: at(time.Second)}, field: "spec.start_at"},
		"a time that is none":      {is: &configv1.Subscription{StartAt: &timestamppb.Timestamp{Nanos: -1}}, field: "spec.start_at"},
		"a time and a start":       {is: &configv1.Subscription{StartAt: at(-time.Hour), Start: beginning}, field: "spec.start_at"},
		"positions":                {is: &configv1.Subscription{StartPositions: []string{good, tok(orders, 2, "a/1", 7)}}},
		"positions and a start":    {is: &configv1.Subscription{StartPositions: []string{good}, Start: end}},
		"positions and a time":     {is: &configv1.Subscription{StartPositions: []string{good}, StartAt: at(-time.Hour)}},
		"no token":                 {is: &configv1.Subscription{StartPositions: []string{good, "nonsense"}}, field: "spec.start_positions[1]"},
		"a partition twice":        {is: &configv1.Subscription{StartPositions: []string{good, tok(orders, 2, "a/0", 8)}}, field: "spec.start_positions[1]"},
		"another topic":            {is: &configv1.Subscription{StartPositions: []string{tok(bills, 2, "a/0", 7)}}, field: "spec.start_positions[0]"},
		"another namespace":        {is: &configv1.Subscription{StartPositions: []string{good, tok(others, 2, "a/0", 7)}}, field: "spec.start_positions[1]"},
		"a topic that is gone":     {is: &configv1.Subscription{StartPositions: []string{tok("00000000-0000-4000-8000-000000000009", 2, "a/0", 7)}}, field: "spec.start_positions[0]"},
		"an epoch to come":         {is: &configv1.Subscription{StartPositions: []string{tok(orders, 3, "a/0", 7)}}, field: "spec.start_positions[0]"},
		"an epoch that was":        {is: &configv1.Subscription{StartPositions: []string{tok(orders, 1, "a/0", 7)}}},
		"two epochs":               {is: &configv1.Subscription{StartPositions: []string{good, tok(orders, 1, "a/0", 7)}}},
		"again":                    {was: &configv1.Subscription{StartAt: at(time.Hour)}, is: &configv1.Subscription{StartAt: at(time.Hour)}},
		"another time":             {was: &configv1.Subscription{StartAt: at(-time.Hour)}, is: &configv1.Subscription{StartAt: at(-time.Minute)}, field: "spec.start_at"},
		"a time of none":           {was: &configv1.Subscription{}, is: &configv1.Subscription{StartAt: at(-time.Minute)}, field: "spec.start_at"},
		"none of a time":           {was: &configv1.Subscription{StartAt: at(-time.Minute)}, is: &configv1.Subscription{}, field: "spec.start_at"},
		"another position":         {was: &configv1.Subscription{StartPositions: []string{good}}, is: &configv1.Subscription{StartPositions: []string{tok(orders, 2, "a/0", 8)}}, field: "spec.start_positions"},
		"no position any more":     {was: &configv1.Subscription{StartPositions: []string{good}}, is: &configv1.Subscription{}, field: "spec.start_positions"},
		"positions of what went":   {was: &configv1.Subscription{StartPositions: []string{tok("00000000-0000-4000-8000-000000000009", 1, "", 1)}}, is: &configv1.Subscription{StartPositions: []string{tok("00000000-0000-4000-8000-000000000009", 1, "", 1)}}},
		"their rest, spelled":      {was: &configv1.Subscription{StartPositions: []string{good}}, is: &configv1.Subscription{StartPositions: []string{good}, Start: beginning}},
		"their rest, from the end": {was: &configv1.Subscription{StartPositions: []string{good}}, is: &configv1.Subscription{StartPositions: []string{good}, Start: end}, field: "spec.start"},
	} {
		all := before
		if tc.was != nil {
			all = append(slices.Clone(before), sub(tc.was))
		}
		r := sub(tc.is)
		problems := append(v.Alone(r), Together(configOf(all...), []*configv1.Resource{r}, nil)...)
		if tc.field == "" && len(problems) > 0 || tc.field != "" && (len(problems) != 1 || problems[0].Field != tc.field) {
			t.Errorf("%s: %v, want one of %q", name, problems, tc.field)
		}
	}
}
