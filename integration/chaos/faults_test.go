package chaos

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"

	"github.com/weft-mesh/weft/integration/servers"
)

// fault is something that breaks, and how it is made whole.
type fault struct {
	name string
	heal func()
}

// nemesis lets faults come and go, up to two at a time; in between, etcd is backed
// up and restored.
func (w *world) nemesis() {
	w.Helper()
	var open []fault
	var healOne func()
	healAll := func() {
		for len(open) > 0 {
			healOne()
		}
		for w.full(pb.AlarmRequest_DEACTIVATE) != nil {
			if w.ctx.Err() != nil {
				w.Fatal("etcd stays full")
			}
		}
	}
	healOne = func() {
		i := w.rnd.IntN(len(open))
		f := open[i]
		open = append(open[:i], open[i+1:]...)
		w.printf("healed: %s", f.name)
		f.heal()
	}
	backupAt, restoreAt := w.rnd.IntN(faults/2), faults/2+w.rnd.IntN(faults/2)
	backup, written := filepath.Join(w.dir, "backup"), 0
	for i := range faults {
		if i == backupAt || i == restoreAt {
			healAll()
			w.gate.Lock()
			if i == backupAt {
				w.must(w.etcd.Save(w.ctx, backup))
				written = w.writesSoFar()
				w.printf("etcd was backed up")
			} else {
				w.restore(backup, written)
			}
			w.gate.Unlock()
		}
		f := w.fault()
		w.printf("fault: %s", f.name)
		open = append(open, f)
		w.hold(10 + w.rnd.IntN(40))
		if len(open) == 2 || w.rnd.IntN(2) == 0 {
			healOne()
			w.hold(w.rnd.IntN(20))
		}
	}
	healAll()
}

// restore brings the backup back and says so only after a while: until then
// replicas suspect it, and neither they nor proxies that start again go back. No
// writer is in.
func (w *world) restore(backup string, written int) {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, convergeTime)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	await := func(what string, holds func(*replica) error) {
		w.Helper()
		for _, r := range w.cps {
			for err := holds(r); err != nil; err = holds(r) {
				select {
				case <-tick.C:
				case <-ctx.Done():
					w.Fatalf("%s: %s: %v", r.Name, what, err)
				}
			}
		}
	}
	now, err := w.content()
	w.must(err)
	var last int64
	for _, h := range now.set {
		last = max(last, h.version)
	}
	await("everything is read", func(r *replica) error {
		st, err := r.client.GetStatus(ctx, &adminv1.GetStatusRequest{Local: true})
		if err == nil && st.Revision < last {
			err = fmt.Errorf("it is at %d, etcd at %d", st.Revision, last)
		}
		return err
	})
	bump := w.rnd.IntN(2) == 0
	w.printf("etcd is restored, raised revisions: %v", bump)
	w.must(w.etcd.Restore(w.ctx, backup, bump))
	w.era.Add(1)
	if w.restored(written) {
		await("the restore is suspected", func(r *replica) error {
			mctx, cancel := context.WithTimeout(w.ctx, 10*time.Second)
			defer cancel()
			v, err := metric(mctx, r.ops, "weft_controlplane_restore_suspected")
			if err == nil && v != 1 {
				err = errors.New("it is not")
			}
			return err
		})
	}
	w.printf("nobody has said so yet")
	for _, p := range w.proxies[:4] {
		p.stop()
		p.start()
	}
	w.must(w.real.Kill())
	w.must(w.real.Start(w.ctx))
	w.gate.Unlock()
	w.hold(10)
	// Watches that wait for what is lost end.
	w.compact()
	if err := w.full(pb.AlarmRequest_ACTIVATE); err != nil {
		w.printf("etcd could not be filled: %v", err)
	}
	w.hold(10)
	for w.full(pb.AlarmRequest_DEACTIVATE) != nil {
		if w.ctx.Err() != nil {
			w.Fatal("etcd stays full")
		}
	}
	w.hold(10)
	w.gate.Lock()
	for {
		cctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		resp, err := w.cps[w.rnd.IntN(replicas)].client.DeclareRestore(cctx, &adminv1.DeclareRestoreRequest{Reason: "chaos"})
		cancel()
		if err == nil {
			w.printf("lineage %s begins at %d", resp.Lineage, resp.Revision)
			return
		}
		w.printf("the restore cannot be declared yet: %v", err)
		select {
		case <-tick.C:
		case <-ctx.Done():
			w.Fatalf("the restore cannot be declared: %v", err)
		}
	}
}

// faultKinds is how many kinds of faults there are. Each comes once before any comes
// again, so that even a short run has all.
const faultKinds = 13

// fault breaks something.
func (w *world) fault() fault {
	w.Helper()
	nothing := func() {}
	i := w.rnd.IntN(replicas)
	cp, member := w.cps[i], w.etcd.Members[w.rnd.IntN(members)]
	all := func(links []*link, f func(*link)) {
		for _, k := range links {
			f(k)
		}
	}
	if len(w.kinds) == 0 {
		w.kinds = w.rnd.Perm(faultKinds)
	}
	kind := w.kinds[0]
	w.kinds = w.kinds[1:]
	switch kind {
	case 0:
		w.must(cp.Kill())
		return fault{cp.Name + " is killed", func() { w.startAgain(cp.Process) }}
	case 1:
		w.must(cp.Pause())
		return fault{cp.Name + " is paused", func() { w.must(cp.Resume()) }}
	case 2:
		w.must(member.Kill())
		return fault{member.Process.Name + " is killed", func() { w.startAgain(member.Process) }}
	case 3:
		w.must(member.Pause())
		return fault{member.Process.Name + " is paused", func() { w.must(member.Resume()) }}
	case 4:
		all(cp.toEtcd, (*link).cut)
		return fault{cp.Name + " is cut off from etcd", func() {
			// Who starts again now may meet it, and knows more than it does.
			for _, p := range w.proxies {
				if p.id%2 == 0 {
					p.stop()
					p.start()
				}
			}
			w.hold(10)
			all(cp.toEtcd, (*link).mend)
		}}
	case 5:
		j := w.rnd.IntN(members)
		for _, r := range w.cps {
			r.toEtcd[j].cut()
		}
		return fault{"every replica is cut off from member " + strconv.Itoa(j), func() {
			for _, r := range w.cps {
				r.toEtcd[j].mend()
			}
		}}
	case 6:
		k := w.peers[w.rnd.IntN(members)]
		k.cut()
		return fault{"other members do not reach a member", k.mend}
	case 7:
		side := w.rnd.IntN(2)
		all(w.toCP[side], (*link).cut)
		return fault{fmt.Sprintf("half of the proxies (%d) are cut off", side), func() { all(w.toCP[side], (*link).mend) }}
	case 8:
		w.toCP[0][i].cut()
		w.toCP[1][i].cut()
		return fault{cp.Name + " is cut off from all proxies", func() { w.toCP[0][i].mend(); w.toCP[1][i].mend() }}
	case 9:
		w.compact()
		return fault{"etcd is compacted", nothing}
	case 10:
		if err := w.full(pb.AlarmRequest_ACTIVATE); err != nil {
			return fault{"etcd could not be filled: " + err.Error(), nothing}
		}
		return fault{"etcd is full", func() { _ = w.full(pb.AlarmRequest_DEACTIVATE) }} // again once all else is well
	case 11:
		for range 3 {
			p := w.proxies[w.rnd.IntN(proxies)]
			p.stop()
			p.start()
		}
		w.must(w.real.Kill())
		return fault{"the real proxy is killed, three others were started again", func() { w.startAgain(w.real) }}
	default:
		other := w.etcd.Members[w.rnd.IntN(members)]
		w.must(member.Kill())
		w.must(other.Kill())
		return fault{member.Process.Name + " and " + other.Process.Name + " are killed", func() {
			w.startAgain(member.Process)
			w.startAgain(other.Process)
		}}
	}
}

// compact drops all of etcd's past, where etcd can be reached.
func (w *world) compact() {
	ctx, cancel := context.WithTimeout(w.ctx, 2*time.Second)
	defer cancel()
	resp, err := w.own.Get(ctx, prefix)
	if err == nil {
		_, err = w.own.Compact(ctx, resp.Header.Revision)
	}
	if err != nil {
		w.printf("etcd could not be compacted: %v", err)
	}
}

// full raises the alarm that etcd raises when its space is used up, or ends it: it
// refuses all writes.
func (w *world) full(do pb.AlarmRequest_AlarmAction) error {
	ctx, cancel := context.WithTimeout(w.ctx, 2*time.Second)
	defer cancel()
	list, err := w.own.MemberList(ctx)
	for i := 0; err == nil && i < len(list.Members); i++ {
		_, err = pb.NewMaintenanceClient(w.own.ActiveConnection()).Alarm(ctx, &pb.AlarmRequest{Action: do, MemberID: list.Members[i].ID, Alarm: pb.AlarmType_NOSPACE})
	}
	return err
}

// startAgain starts what does not run.
func (w *world) startAgain(p *servers.Process) {
	w.Helper()
	if !p.Alive() {
		w.must(p.Start(w.ctx))
	}
}
