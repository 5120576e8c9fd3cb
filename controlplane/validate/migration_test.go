package validate

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/resource"
)

func named(name, uid string, r *configv1.Resource) *configv1.Resource {
	r.Metadata = &configv1.Metadata{Namespace: "ns", Name: name, Uid: uid}
	return r
}

func rocketmqStore(name string) *configv1.Resource {
	return named(name, "uid-"+name, &configv1.Resource{Spec: &configv1.Resource_EventStore{EventStore: &configv1.EventStore{
		Driver: &configv1.EventStore_Rocketmq{Rocketmq: &configv1.RocketMQ{NameServers: []string{name}}}}}})
}

func topicIn(name, store string) *configv1.Resource {
	return named(name, "uid-"+name, &configv1.Resource{Spec: &configv1.Resource_Topic{Topic: &configv1.Topic{Store: store}}})
}

// bound is the binding of a topic with an epoch in each store.
func bound(name string, move *configv1.Move, stores ...string) *configv1.Resource {
	b := &configv1.TopicBinding{TopicUid: "uid-" + name, Move: move}
	for i, s := range stores {
		physical := "ns_" + name
		if i > 0 {
			physical += "_e" + s
		}
		b.Epochs = append(b.Epochs, &configv1.Epoch{Number: uint32(i + 1), Store: s, StoreUid: "uid-" + s, PhysicalName: physical})
	}
	return named(name, "", &configv1.Resource{Spec: &configv1.Resource_TopicBinding{TopicBinding: b}})
}

func migrationTo(store string, wish configv1.Migration_Wish) *configv1.Resource {
	return named("t", "m", &configv1.Resource{Spec: &configv1.Resource_Migration{Migration: &configv1.Migration{To: store, Wish: wish}}})
}

func isMove(phase configv1.Move_Phase, back bool) *configv1.Move {
	return &configv1.Move{MigrationUid: "m", Phase: phase, Back: back}
}

// told asserts what is told of a change: one problem that has it all, or none for "".
func told(t *testing.T, what string, problems []Problem, want string) {
	t.Helper()
	if want == "" {
		if len(problems) > 0 {
			t.Errorf("%s: %v", what, problems)
		}
		return
	}
	if len(problems) != 1 || !strings.Contains(problems[0].Field+": "+problems[0].Rule+": "+problems[0].Message, want) {
		t.Errorf("%s: %v, want %s", what, problems, want)
	}
}

// TestMigrations: which Migrations may be made.
func TestMigrations(t *testing.T) {
	kafka := named("k", "uid-k", &configv1.Resource{Spec: &configv1.Resource_EventStore{EventStore: &configv1.EventStore{Driver: &configv1.EventStore_Kafka{Kafka: &configv1.Kafka{Brokers: []string{"k"}}}}}})
	local := named("l", "uid-l", &configv1.Resource{Spec: &configv1.Resource_EventStore{EventStore: &configv1.EventStore{Driver: &configv1.EventStore_Embedded{Embedded: &configv1.Embedded{}}}}})
	adopted := topicIn("other", "b")
	adopted.GetTopic().PhysicalName = "theirs"
	before := func(more ...*configv1.Resource) config {
		return configOf(append([]*configv1.Resource{rocketmqStore("a"), rocketmqStore("b"), kafka, local, topicIn("t", "a"), bound("t", nil, "a"), adopted, bound("other", nil, "b", "a")}, more...)...)
	}
	with := func(store, physical string) *configv1.Resource {
		r := migrationTo(store, 0)
		r.GetMigration().PhysicalName = physical
		return r
	}
	kept, replicated := topicIn("t", "a"), topicIn("t", "a")
	kept.GetTopic().Retention = &configv1.Retention{MaxAge: durationpb.New(time.Hour)}
	replicated.GetTopic().Needs = &configv1.Needs{Durability: configv1.Durability_DURABILITY_REPLICATED}
	elsewhere := migrationTo("b", 0)
	elsewhere.Metadata.Name = "nothing"
	for name, tc := range map[string]struct {
		before config
		put    *configv1.Resource
		want   string
	}{
		"to another store":              {before(), migrationTo("b", 0), ""},
		"paused from the beginning":     {before(), migrationTo("b", configv1.Migration_WISH_PAUSE), ""},
		"no topic":                      {before(), elsewhere, "metadata.name: reference: there is no Topic nothing"},
		"no store":                      {before(), migrationTo("c", 0), "spec.to: reference: there is no EventStore c"},
		"to where it is":                {before(), migrationTo("a", 0), "spec.to: move: the topic is in EventStore a already"},
		"to where it was made":          {before(bound("t", nil, "b")), migrationTo("a", 0), ""},
		"to where it is since a move":   {before(bound("t", nil, "a", "b")), migrationTo("b", 0), "in EventStore b already"},
		"back, with nothing to go from": {before(), migrationTo("b", configv1.Migration_WISH_ROLL_BACK), "spec.wish: move: there is nothing to take back"},
		"beside another":                {before(bound("t", isMove(1, false), "a", "b")), migrationTo("k", 0), "metadata.name: move: another move"},
		"a name of its own":             {before(), with("b", "mine"), ""},
		"a topic's name":                {before(), with("b", "theirs"), "spec.physical_name: unique"},
		"a later epoch's name":          {before(bound("other", nil, "a", "b")), with("b", "ns_other_eb"), "spec.physical_name: unique"},
		"that name, elsewhere":          {before(), with("k", "theirs"), ""},
		"its own first name":            {before(bound("t", nil, "a", "b")), with("a", "ns_t"), "spec.physical_name: unique"},
		"a name that RocketMQ has not":  {before(), with("b", "a.b"), "spec.physical_name: store-lacks"},
		"a name that Kafka has not":     {before(), with("k", "a%b"), "spec.physical_name: store-lacks"},
		"a name in an embedded store":   {before(), with("l", "mine"), "spec.physical_name: store-lacks"},
		"retention":                     {before(kept), migrationTo("b", 0), "spec.to: store-lacks"},
		"retention in Kafka":            {before(kept), migrationTo("k", 0), ""},
		"one machine":                   {before(replicated), migrationTo("l", 0), "spec.to: store-lacks"},
	} {
		told(t, name, Together(tc.before, []*configv1.Resource{tc.put}, nil), tc.want)
	}
}

// TestMigrationsApart: two topics do not come to one physical topic, also where no move has
// begun yet, by one change or by two.
func TestMigrationsApart(t *testing.T) {
	moving := func(topic, to, physical string) *configv1.Resource {
		return named(topic, "m-"+topic, &configv1.Resource{Spec: &configv1.Resource_Migration{Migration: &configv1.Migration{To: to, PhysicalName: physical}}})
	}
	// b and c reach the same servers.
	c := rocketmqStore("b")
	c.Metadata.Name, c.Metadata.Uid = "c", "uid-c"
	base := []*configv1.Resource{rocketmqStore("a"), rocketmqStore("b"), c, topicIn("t", "a"), bound("t", nil, "a"), topicIn("u", "a"), bound("u", nil, "a")}
	over := bound("u", nil, "a")
	over.GetTopicBinding().Ended = "m-u"
	adopting := topicIn("v", "b")
	adopting.GetTopic().PhysicalName = "mine"
	const unique = "spec.physical_name: unique"
	for name, tc := range map[string]struct {
		before []*configv1.Resource
		put    []*configv1.Resource
		want   string
	}{
		"one has not begun":      {[]*configv1.Resource{moving("u", "b", "mine")}, []*configv1.Resource{moving("t", "c", "mine")}, unique},
		"another name":           {[]*configv1.Resource{moving("u", "b", "mine")}, []*configv1.Resource{moving("t", "b", "yours")}, ""},
		"one has ended":          {[]*configv1.Resource{moving("u", "b", "mine"), over}, []*configv1.Resource{moving("t", "b", "mine")}, ""},
		"the same one":           {[]*configv1.Resource{moving("t", "b", "mine")}, []*configv1.Resource{moving("t", "b", "mine")}, ""},
		"a topic that adopts it": {[]*configv1.Resource{moving("u", "b", "mine")}, []*configv1.Resource{adopting}, unique},
	} {
		told(t, name, Together(configOf(append(base, tc.before...)...), tc.put, nil), tc.want)
	}
	if problems := Together(configOf(base...), []*configv1.Resource{moving("t", "b", "mine"), moving("u", "c", "mine")}, nil); len(problems) != 2 {
		t.Errorf("both by one change: %v", problems)
	}
}

// TestMigrationChanges: what may become of a Migration, in every phase of its move.
func TestMigrationChanges(t *testing.T) {
	const (
		goOn     = configv1.Migration_WISH_GO
		pause    = configv1.Migration_WISH_PAUSE
		rollBack = configv1.Migration_WISH_ROLL_BACK
		finish   = configv1.Migration_WISH_FINISH
	)
	over := bound("t", nil, "b")
	over.GetTopicBinding().Ended = "m"
	at := func(phase configv1.Move_Phase, back bool) *configv1.Resource {
		if back {
			return bound("t", isMove(phase, back), "a", "b", "a")
		}
		return bound("t", isMove(phase, back), "a", "b")
	}
	for name, tc := range map[string]struct {
		binding  *configv1.Resource
		was, now configv1.Migration_Wish
		want     string
	}{
		"nothing, after the end":         {over, finish, finish, ""},
		"again, after the end":           {over, finish, goOn, "the move has come to its end"},
		"pause before it begins":         {bound("t", nil, "a"), goOn, pause, ""},
		"go, taken back before":          {bound("t", nil, "a"), rollBack, goOn, "taken back before it has begun"},
		"pause while preparing":          {at(1, false), goOn, pause, ""},
		"pause while marking":            {at(4, false), 0, pause, ""},
		"pause behind the cut":           {at(5, false), goOn, pause, "nothing to pause"},
		"pause behind the cut back":      {at(5, true), rollBack, pause, "nothing to pause: finish"},
		"back while stopping":            {at(3, false), pause, rollBack, ""},
		"back when drained":              {at(6, false), goOn, rollBack, ""},
		"finish early":                   {at(1, false), goOn, finish, ""},
		"finish":                         {at(6, false), goOn, finish, ""},
		"finish on the way back":         {at(3, true), rollBack, finish, "is being taken back"},
		"finish, paused on the way back": {at(2, true), pause, finish, "is being taken back, and is paused: let it go on (spec.wish: WISH_ROLL_BACK; weft migrate resume t -n ns), and finish once"},
		"finish, turned forward again":   {at(2, true), goOn, finish, "is being taken back"},
		"finish what was paused":         {at(2, false), pause, finish, ""},
		"finish before the way back":     {at(6, false), rollBack, finish, "is being taken back"},
		"finish the way back":            {at(6, true), rollBack, finish, ""},
		"forward on the way back":        {at(2, true), rollBack, goOn, ""},
		"forward behind the cut back":    {at(5, true), rollBack, goOn, "the move was taken back"},
		"forward, with nothing to wish":  {at(6, true), rollBack, 0, "the move was taken back"},
	} {
		before := configOf(rocketmqStore("a"), rocketmqStore("b"), topicIn("t", "a"), tc.binding, migrationTo("b", tc.was))
		told(t, name, Together(before, []*configv1.Resource{migrationTo("b", tc.now)}, nil), tc.want)
	}
	before := configOf(rocketmqStore("a"), rocketmqStore("b"), rocketmqStore("c"), topicIn("t", "a"), at(1, false), migrationTo("b", 0))
	told(t, "another store", Together(before, []*configv1.Resource{migrationTo("c", 0)}, nil), "spec.to: immutable")
	renamed := migrationTo("b", 0)
	renamed.GetMigration().PhysicalName = "x"
	told(t, "another name", Together(before, []*configv1.Resource{renamed}, nil), "spec.physical_name: immutable")
}

// TestWhereATopicIs: a Topic's file may say where the topic was made, or where it is since
// it was moved; what else it says is refused with the way there, where there is one.
func TestWhereATopicIs(t *testing.T) {
	adopted := topicIn("t", "a")
	adopted.GetTopic().PhysicalName = "theirs"
	same := topicIn("t", "b")
	same.GetTopic().PhysicalName = "theirs"
	local := named("l", "uid-l", &configv1.Resource{Spec: &configv1.Resource_EventStore{EventStore: &configv1.EventStore{Driver: &configv1.EventStore_Embedded{Embedded: &configv1.Embedded{}}}}})
	into := topicIn("t", "l")
	into.GetTopic().PhysicalName = "theirs"
	for name, tc := range map[string]struct {
		was     *configv1.Resource
		binding *configv1.Resource
		now     *configv1.Resource
		want    string
	}{
		"another":                {topicIn("t", "a"), bound("t", nil, "a"), topicIn("t", "b"), `spec.store: immutable: is "a"; moving a topic that is used is weft migrate's work: weft migrate t -n ns --to b, and leave the field as it is`},
		"none":                   {topicIn("t", "a"), bound("t", nil, "a"), topicIn("t", "mian"), "spec.store: reference: there is no EventStore mian in namespace ns"},
		"what it said":           {topicIn("t", "a"), bound("t", nil, "b"), topicIn("t", "a"), ""},
		"where it is":            {topicIn("t", "a"), bound("t", nil, "b"), topicIn("t", "b"), ""},
		"where it was made":      {topicIn("t", "b"), bound("t", nil, "b"), topicIn("t", "a"), `is "b"; moving a topic`},
		"another, moved":         {topicIn("t", "a"), bound("t", nil, "b"), topicIn("t", "l"), `is "a", and the topic is in EventStore b since it was moved: the field may say either; moving a topic that is used is weft migrate's work: weft migrate t -n ns --to l`},
		"none, moved":            {topicIn("t", "a"), bound("t", nil, "b"), topicIn("t", "mian"), "spec.store: reference: there is no EventStore mian in namespace ns"},
		"where it goes":          {topicIn("t", "a"), bound("t", isMove(6, false), "a", "b"), topicIn("t", "b"), `is "a", and the topic is being moved: leave the field as it is until that has ended (weft migrate status t -n ns)`},
		"of another one":         {topicIn("t", "a"), bound("u", nil, "b"), topicIn("t", "b"), `is "a"; moving a topic`},
		"with its own name":      {adopted, bound("t", nil, "b"), same, ""},
		"where names are no use": {adopted, bound("t", nil, "l"), into, ""},
	} {
		tc.binding.Metadata.Name = "t"
		before := configOf(rocketmqStore("a"), rocketmqStore("b"), local, tc.was, tc.binding)
		told(t, name, Together(before, []*configv1.Resource{tc.now}, nil), tc.want)
	}
}

// TestMovedAway: what may be deleted while a topic moves, and after that.
func TestMovedAway(t *testing.T) {
	over := bound("t", nil, "b")
	over.GetTopicBinding().Ended = "m"
	left := configOf(rocketmqStore("a"), rocketmqStore("b"), topicIn("t", "a"), over, migrationTo("b", configv1.Migration_WISH_FINISH))
	moves := func(phase configv1.Move_Phase) config {
		return configOf(rocketmqStore("a"), rocketmqStore("b"), topicIn("t", "a"), bound("t", isMove(phase, false), "a", "b"), migrationTo("b", 0))
	}
	for name, tc := range map[string]struct {
		before config
		gone   []string
		want   string
	}{
		"the Migration, under way":             {moves(2), []string{"migration/ns/t"}, "roll it back or finish it first"},
		"the Migration, drained":               {moves(6), []string{"migration/ns/t"}, "finish it first"},
		"the Migration, over":                  {left, []string{"migration/ns/t"}, ""},
		"the topic, under way":                 {moves(2), []string{"topic/ns/t"}, ""},
		"the topic with its Migration":         {moves(2), []string{"topic/ns/t", "migration/ns/t"}, ""},
		"the old store, drained":               {moves(6), []string{"eventstore/ns/a"}, "has events of topic/ns/t"},
		"the old store, given up":              {left, []string{"eventstore/ns/a"}, ""},
		"the new store, given the old one up":  {left, []string{"eventstore/ns/b"}, "has events of topic/ns/t"},
		"the new store, with all":              {left, []string{"eventstore/ns/a", "eventstore/ns/b", "topic/ns/t", "migration/ns/t"}, ""},
		"a store that a Migration will go to":  {configOf(rocketmqStore("a"), rocketmqStore("b"), topicIn("t", "a"), bound("t", nil, "a"), migrationTo("b", 0)), []string{"eventstore/ns/b"}, "is used by migration/ns/t (spec.to)"},
		"a store of a topic without a binding": {configOf(rocketmqStore("a"), topicIn("t", "a")), []string{"eventstore/ns/a"}, "is used by topic/ns/t (spec.store)"},
	} {
		told(t, name, Together(tc.before, nil, tc.gone), tc.want)
	}
	// The topic is judged by the store that it is in, also when the first one is gone.
	delete(left, "eventstore/ns/a")
	again := proto.Clone(left["topic/ns/t"]).(*configv1.Resource)
	again.GetTopic().Partitions = 16
	told(t, "a topic whose first store is gone", Together(left, []*configv1.Resource{again}, nil), "")
	// Another store that reaches where a later epoch is.
	both := configOf(rocketmqStore("a"), rocketmqStore("b"), rocketmqStore("c"), topicIn("t", "a"), bound("t", nil, "a", "b"))
	taken := named("x", "uid-x", &configv1.Resource{Spec: &configv1.Resource_Topic{Topic: &configv1.Topic{Store: "b", PhysicalName: "ns_t_eb"}}})
	told(t, "a topic that adopts a later epoch", Together(both, []*configv1.Resource{taken}, nil), "spec.physical_name: unique")
	taken.GetTopic().Store = "c"
	both[resource.NameOf(taken)] = taken
	reaches := rocketmqStore("c")
	reaches.GetEventStore().GetRocketmq().NameServers = []string{"b"}
	told(t, "a store that reaches there", Together(both, []*configv1.Resource{reaches}, nil), "spec: unique")
}
