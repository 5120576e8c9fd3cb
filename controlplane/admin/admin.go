// Package admin is the admin API: it decodes a change, has it validated, writes
// it, and shows what is there.
package admin

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/census"
	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/controlplane/jointoken"
	"github.com/weft-mesh/weft/controlplane/roster"
	"github.com/weft-mesh/weft/controlplane/validate"
	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// Config is what the API stands on.
type Config struct {
	Store     *configstore.Store
	Validator *validate.Validator
	// Guard bounds what one change may remove.
	Guard Guard
	// Mesh knows the proxies and the other replicas; Commands reach the proxies
	// that are connected here.
	Mesh     *census.Mesh
	Commands *census.Reports
	// Alarms are asked for what a status shows.
	Alarms []Alarms
	// Conditions tells what is known of stores; by canonical name.
	Conditions func(ctx context.Context) (map[string][]*adminv1.Condition, error)
	// Progress, if set, tells how far everyone is with a Migration's move; nil where that is
	// not known.
	Progress func(ctx context.Context, migration string) *adminv1.MoveProgress
	// Observed tells what EventStores were observed to be able to do; false where
	// nobody knows. Nil knows of none.
	Observed func(ctx context.Context) func(*configstore.Entry) (store.Capabilities, bool)
	Version  string
	// Clock dates what is created.
	Clock   clock.Clock
	Metrics prometheus.Registerer
	Log     *slog.Logger
	// JoinTokens are those with which proxies join.
	JoinTokens *jointoken.Tokens
	// Roster has the proxies that may have configuration.
	Roster *roster.Roster
	// SnapshotKey signs exported snapshots; nil does not.
	SnapshotKey ed25519.PrivateKey
}

// Service implements AdminService.
type Service struct {
	adminv1.UnimplementedAdminServiceServer
	cfg      Config
	metrics  metrics
	refusals refusals
	removed  removed
	// flushEvery is the constant; shorter in tests.
	flushEvery time.Duration
	// exporting has a place for the one snapshot that is exported at a time: it is
	// in memory as a whole.
	exporting chan struct{}
	// turn has room for the one change that is being decided and written: two at
	// once would only get in each other's way.
	turn chan struct{}
}

// New makes the service. What serves it must authorise each call: see Access.
func New(cfg Config) *Service {
	return &Service{cfg: cfg, metrics: newMetrics(cfg.Metrics), refusals: newRefusals(), removed: removed{turn: make(chan struct{}, 1)}, flushEvery: flushEvery, turn: make(chan struct{}, 1), exporting: make(chan struct{}, 1)}
}

// maxRefusal bounds what a refusal tells, in bytes: it is sent in a header. Beyond,
// problems are counted.
const maxRefusal = 24 << 10

// refused is an INVALID_ARGUMENT or FAILED_PRECONDITION with every problem.
func refused(problems []validate.Problem) error {
	code := codes.InvalidArgument
	if precondition(problems) {
		code = codes.FailedPrecondition
	}
	var lines []string
	br := &errdetails.BadRequest{}
	room := maxRefusal
	for i, p := range problems {
		line := p.String()
		if room -= len(line); room < 0 {
			rest := fmt.Sprintf("%d more are not shown", len(problems)-i)
			lines = append(lines, rest)
			br.FieldViolations = append(br.FieldViolations, &errdetails.BadRequest_FieldViolation{Field: "…", Description: rest})
			break
		}
		lines = append(lines, line)
		br.FieldViolations = append(br.FieldViolations, &errdetails.BadRequest_FieldViolation{
			Field: p.Resource + ": " + p.Field, Description: p.Message, Reason: p.Rule})
	}
	head := "1 problem"
	if len(problems) > 1 {
		head = fmt.Sprintf("%d problems", len(problems))
	}
	st, err := status.New(code, head+": "+strings.Join(lines, "; ")).WithDetails(br)
	if err != nil {
		return status.Error(code, strings.Join(lines, "; "))
	}
	return st.Err()
}

// precondition reports whether only the state of other resources forbids it.
func precondition(problems []validate.Problem) bool {
	for _, p := range problems {
		switch p.Rule {
		case "reference", "in-use", "conflict", "not-found", "newer":
		default:
			return false
		}
	}
	return true
}

func toStatus(err error) error {
	f := fault.From(err)
	msg := f.Msg
	if msg == "" {
		msg = f.Reason
	}
	return status.Error(f.Class.Answer().GRPC, msg)
}
