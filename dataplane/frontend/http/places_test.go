package http

import (
	"fmt"
	"maps"
	"math"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/position"
)

// FuzzPlaces: what is taken as a place comes back the same, and is bounded.
func FuzzPlaces(f *testing.F) {
	p := &places{since: 1}
	p.see(position.Token{TopicUID: "11111111-1111-4111-8111-111111111111", Epoch: 1, Pos: store.Position{Partition: "a/1", Offset: 7}})
	f.Add(string(p.append(nil)))
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parsePlaces(s)
		if err != nil {
			return
		}
		if len(p.tokens) > maxPlaces || len(p.texts) != len(p.tokens) {
			t.Fatalf("%d tokens", len(p.tokens))
		}
		if p, err = parsePlaces(string(p.append(nil))); err != nil { // one place of each partition
			t.Fatal(err)
		}
		again, err := parsePlaces(string(p.append(nil)))
		if err != nil || again.since != p.since || strings.Join(again.texts, " ") != strings.Join(p.texts, " ") {
			t.Errorf("%+v, %+v, %v", p, again, err)
		}
	})
}

// TestPlacesOverEpochs: the id of a stream has where it is in the newest epoch, and that it
// was in one before, however many partitions both have.
func TestPlacesOverEpochs(t *testing.T) {
	p := &places{}
	const other = "22222222-2222-4222-8222-222222222222"
	for epoch := range uint32(3) {
		for part := range maxPlaces / 2 {
			p.see(position.Token{TopicUID: "11111111-1111-4111-8111-111111111111", Epoch: epoch + 1, Pos: store.Position{Partition: strconv.Itoa(part)}})
			p.see(position.Token{TopicUID: other, Epoch: 1, Pos: store.Position{Offset: uint64(part)}})
		}
	}
	got := map[uint32]int{}
	for _, tok := range p.tokens {
		if tok.TopicUID != other {
			got[tok.Epoch]++
		}
	}
	if got[3] != maxPlaces/2 || got[1]+got[2] != 1 || len(p.tokens) != maxPlaces/2+2 {
		t.Errorf("got %v of %d", got, len(p.tokens))
	}
}

// TestLongPlaces: an id fits in the headers of the request that has it as Last-Event-ID,
// whatever the names of partitions are; what it has no place for comes again from where the
// stream began. Places of epochs that are over make room.
func TestLongPlaces(t *testing.T) {
	p := &places{since: 1}
	for epoch := range uint32(3) {
		for part := range maxPlaces {
			p.see(position.Token{TopicUID: "11111111-1111-4111-8111-111111111111", Epoch: epoch + 1, Pos: store.Position{Partition: fmt.Sprintf("%0200d", part)}})
		}
	}
	for i := range p.tokens {
		tok := p.tokens[i]
		tok.Pos.Offset = math.MaxUint64
		p.see(tok)
	}
	for _, tok := range p.tokens[1:] { // the first says that the stream was there
		if tok.Epoch != 3 {
			t.Fatalf("a place of epoch %d is kept", tok.Epoch)
		}
	}
	id := string(p.append(nil))
	if len(p.tokens) < 40 || len(id) > 30<<10 {
		t.Errorf("%d places in %d bytes", len(p.tokens), len(id))
	}
	again, err := parsePlaces(id)
	if err != nil || again.since != p.since || len(again.tokens) < 40 {
		t.Errorf("%+v, %v", again, err)
	}
	w := serve(t)
	if resp, body := w.ask("GET", orders+"/events?from=no", "", "Last-Event-ID: "+id); resp.StatusCode != http.StatusBadRequest || !strings.Contains(body, "bad-from") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

// TestPlacesOfDeletedTopics: the places of topics that a stream reads no more make room for
// those of others, and only these do.
func TestPlacesOfDeletedTopics(t *testing.T) {
	const gone, stays, new = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222", "33333333-3333-4333-8333-333333333333"
	reads := map[string]struct{}{gone: {}, stays: {}, new: {}}
	p := &places{since: 1, reads: func() map[string]struct{} { return reads }}
	see := func(topic string, parts int) {
		for part := range parts {
			p.see(position.Token{TopicUID: topic, Epoch: 1, Pos: store.Position{Partition: strconv.Itoa(part), Offset: 7}})
		}
	}
	has := func(when string, want map[string]int) {
		t.Helper()
		got, size := map[string]int{}, 0
		for i, tok := range p.tokens {
			got[tok.TopicUID]++
			size += len(p.texts[i])
		}
		if !maps.Equal(got, want) || size != p.size {
			t.Errorf("%s: %v, %d of %d bytes", when, got, size, p.size)
		}
	}
	see(gone, maxPlaces-10)
	see(stays, 10)
	see(new, 5)
	has("full", map[string]int{gone: maxPlaces - 10, stays: 10})
	delete(reads, gone)
	see(stays, 10)
	has("with room for all", map[string]int{gone: maxPlaces - 10, stays: 10})
	for range lookAt {
		see(new, 5)
	}
	has("deleted", map[string]int{stays: 10, new: 5})
	if again, err := parsePlaces(string(p.append(nil))); err != nil || len(again.tokens) != 15 {
		t.Errorf("%+v %v", again, err)
	}
}
