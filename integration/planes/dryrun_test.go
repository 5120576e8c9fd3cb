package planes

import (
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
)

// TestDryRunAnswersAsTheRun: what is too much for one transaction is so in a dry
// run too: of Topics, which take two writes when they are new, and of deletions.
func TestDryRunAnswersAsTheRun(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	cp := startReplica(ctx, t, startEtcd(ctx, t))
	topics := func(from, to int) (rs []*configv1.Resource, targets []*adminv1.DeleteTarget) {
		for i := from; i < to; i++ {
			rs = append(rs, topic("demo", fmt.Sprint("t", i)))
			targets = append(targets, &adminv1.DeleteTarget{Name: fmt.Sprint("topic/demo/t", i)})
		}
		return rs, targets
	}
	apply(ctx, t, cp, eventStore("demo", "main", ""))
	for n, want := range map[int]codes.Code{60: codes.OK, 61: codes.InvalidArgument} {
		for _, dry := range []bool{true, false} {
			rs, _ := topics(n*1000, n*1001)
			if _, err := cp.admin.Apply(ctx, &adminv1.ApplyRequest{Resources: rs, DryRun: dry}); status.Code(err) != want {
				t.Errorf("%d topics, dry %v: %v", n, dry, err)
			}
		}
	}
	more, _ := topics(61000, 61020)
	apply(ctx, t, cp, more...)
	_, targets := topics(60000, 60060)
	_, others := topics(61000, 61020)
	targets = append(targets, others...)
	for _, dry := range []bool{true, false} {
		if _, err := cp.admin.Delete(ctx, &adminv1.DeleteRequest{Targets: targets, DryRun: dry, AllowMassRemoval: true}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("80 topics with their companions, dry %v: %v", dry, err)
		}
	}
}
