package rocketmq

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/rocketmq/remoting"
)

// Request and answer codes of the protocol that are used here.
const (
	reqQueryOffset = 14
	reqCommit      = 15
	reqPull        = 11
	reqCreateTopic = 17
	reqConfig      = 26
	reqRuntime     = 28
	reqOffsetAt    = 29
	reqMaxOffset   = 30
	reqMinOffset   = 31
	reqHeartbeat   = 34
	reqUnregister  = 35
	reqConsumers   = 38
	reqNotice      = 40
	reqLock        = 41
	reqUnlock      = 42
	reqRoute       = 105
	reqCluster     = 106
	reqGroup       = 200
	reqDeleteGroup = 207
	reqDeleteTopic = 215
	reqDeleteRoute = 216
	reqSend        = 310
	reqSendBatch   = 320
	reqTopicConfig = 351

	resOK            = 0
	resSystemError   = 1
	resBusy          = 2
	resNotSupported  = 3
	resFlushDisk     = 10
	resNoSlave       = 11
	resFlushSlave    = 12
	resIllegal       = 13
	resNotAvailable  = 14
	resNoPermission  = 16
	resNoTopic       = 17
	resPullNotFound  = 19
	resPullRetry     = 20
	resPullMoved     = 21
	resQueryNotFound = 22
	resNoGroup       = 26
	resFlowControl   = 215
)

// queue is one queue of a topic: a partition.
type queue struct {
	broker string
	id     int
}

// name is the partition's stable name.
func (q queue) name() string { return q.broker + "/" + strconv.Itoa(q.id) }

// compare sorts queues.
func (q queue) compare(other queue) int {
	return cmp.Or(strings.Compare(q.broker, other.broker), q.id-other.id)
}

// had is what a broker was seen to have of a topic.
type had struct {
	at    time.Time
	write int // queues to be written
}

// route is where a topic is.
type route struct {
	brokers map[string]string // address of each broker's master
	read    []queue           // sorted
	write   []queue           // sorted
	keyed   []queue           // write, with the queues of brokers that are away and are waited for; sorted
	all     []queue           // whatever is allowed; sorted
	away    []string          // brokers that have it, whose master is away
	queues  map[string]int    // how many of each broker are to be written, if that is allowed
	perms   map[string]int    // what each broker lets be done; the least that a name server says
	at      time.Time         // when name servers were asked for it
}

// cluster reaches name servers and brokers. It is safe for concurrent use.
type cluster struct {
	op    Options
	sign  *signer // nil where requests are not signed
	notes func()  // a broker says that the members of a group have changed; may be nil
	times times
	life  context.Context // ends when it closes
	end   context.CancelFunc
	work  sync.WaitGroup // looks for routes, and connections that are being made

	mu     sync.Mutex
	conns  map[string]*remoting.Conn
	dials  map[string]*dialing
	places map[string]*place
	had    map[string]map[string]had // what brokers were last seen to have of a topic
	first  string                    // the name server that answered last; "" at first
	closed bool
}

// Times of a cluster.
const (
	dialTimeout = 3 * time.Second
	callTimeout = 5 * time.Second
	routeAge    = 10 * time.Second
)

// times of a cluster that tests change.
type times struct {
	answer   time.Duration // how long an answer to a short question is waited for
	patience time.Duration // how long a look may take until those with an old route wait for it no more
	again    time.Duration // from a look that failed to the next one, for those with an old route
}

func newCluster(o Options, sign *signer, notes func()) *cluster {
	c := &cluster{op: o, sign: sign, notes: notes, times: times{answer: callTimeout, patience: 250 * time.Millisecond, again: time.Second},
		conns: map[string]*remoting.Conn{}, dials: map[string]*dialing{}, places: map[string]*place{}, had: map[string]map[string]had{}}
	c.life, c.end = context.WithCancel(context.Background())
	return c
}

func (c *cluster) close() {
	c.end()
	c.mu.Lock()
	c.closed = true
	conns := slices.Collect(maps.Values(c.conns))
	clear(c.conns)
	c.mu.Unlock()
	for _, conn := range conns {
		conn.Close()
	}
	c.work.Wait()
}

// conn gives the connection to addr. Where none lives, all who ask wait for the same new
// one: a handshake of TLS costs both sides much.
func (c *cluster) conn(ctx context.Context, addr string) (*remoting.Conn, error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, fmt.Errorf("%w: the store is closed", remoting.ErrNotSent)
	}
	if conn := c.conns[addr]; conn != nil {
		select {
		case <-conn.Done():
			delete(c.conns, addr)
		default:
			c.mu.Unlock()
			return conn, nil
		}
	}
	d := c.dials[addr]
	if d == nil {
		d = &dialing{done: make(chan struct{})}
		c.dials[addr] = d
		c.work.Go(func() { c.dial(addr, d) })
	}
	c.mu.Unlock()
	select {
	case <-d.done:
		return d.conn, d.err
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", remoting.ErrNotSent, ctx.Err())
	}
}

// dialing is a connection that is being made.
type dialing struct {
	done chan struct{} // closed when one of the others is there
	conn *remoting.Conn
	err  error
}

func (c *cluster) dial(addr string, d *dialing) {
	defer close(d.done)
	ctx, cancel := context.WithTimeout(c.life, dialTimeout)
	defer cancel()
	d.conn, d.err = remoting.Dial(ctx, addr, c.op.TLS, func(cmd *remoting.Command) {
		if cmd.Code == reqNotice && c.notes != nil {
			c.notes()
		}
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.dials, addr)
	switch {
	case d.err != nil:
	case c.closed:
		d.conn.Close()
		d.conn, d.err = nil, fmt.Errorf("%w: the store is closed", remoting.ErrNotSent)
	default:
		c.conns[addr] = d.conn
	}
}

// current is the connection to addr that is used now; nil where there is none.
func (c *cluster) current(addr string) *remoting.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conns[addr]
}

// call asks addr, signed where the cluster has keys. A request whose keys were
// refused had no effect; it goes once more where there are others now.
func (c *cluster) call(ctx context.Context, addr string, code int, fields map[string]string, body []byte) (*remoting.Command, error) {
	conn, err := c.conn(ctx, addr)
	if err != nil {
		return nil, err
	}
	if c.sign == nil {
		return conn.Call(ctx, code, fields, body)
	}
	keys := c.sign.current()
	cmd, err := conn.Call(ctx, code, remoting.Sign(fields, body, keys.Access, keys.Secret), body)
	if err == nil && denied(cmd) {
		if other, ok := c.sign.renew(keys); ok {
			keys = other
			cmd, err = conn.Call(ctx, code, remoting.Sign(fields, body, keys.Access, keys.Secret), body)
		}
	}
	if err == nil && cmd.Remark != "" {
		cmd.Remark = keys.hide(cmd.Remark)
	}
	return cmd, err
}

// ask is call with its own time-out, for short questions, and with the codes of
// success; any other answer is an error.
func (c *cluster) ask(ctx context.Context, addr string, code int, fields map[string]string, body []byte) (*remoting.Command, error) {
	ctx, cancel := context.WithTimeout(ctx, c.times.answer)
	defer cancel()
	cmd, err := c.call(ctx, addr, code, fields, body)
	if err != nil {
		return nil, unavailable(err)
	}
	if cmd.Code != resOK {
		return cmd, answered(cmd)
	}
	return cmd, nil
}

func unavailable(err error) error {
	if store.Why(err) == "SecretMissing" {
		return fault.From(err) // of the options: a file of TLS
	}
	return &fault.Error{Class: fault.Unavailable, Op: "rocketmq", Reason: "store-unreachable", RetryAfter: time.Second, Err: err, Msg: "the event store cannot be reached"}
}

// answered is the error of an answer that is none of success.
func answered(cmd *remoting.Command) *fault.Error {
	if denied(cmd) {
		return &fault.Error{Class: fault.Unavailable, Op: "rocketmq", Reason: "store-access-denied", RetryAfter: time.Second,
			Err: fmt.Errorf("code %d: %.200s", cmd.Code, cmd.Remark), Msg: "the event store does not take the mesh's credentials for this"}
	}
	e := &fault.Error{Class: fault.Unavailable, Op: "rocketmq", Reason: "store-refused", RetryAfter: time.Second,
		Err: fmt.Errorf("code %d: %.200s", cmd.Code, cmd.Remark), Msg: "the event store refused"}
	switch cmd.Code {
	case resNoTopic:
		e.Class, e.Reason, e.Msg, e.RetryAfter = fault.NotFound, "unknown-topic", "the event store has no such topic", 0
	case resIllegal:
		e.Class, e.Reason, e.Msg, e.RetryAfter = fault.Invalid, "store-refused", "the event store does not take this message", 0
	case resBusy, resFlowControl:
		e.Class, e.Reason, e.Msg, e.RetryAfter = fault.Throttled, "store-busy", "the event store is busy; nothing was kept", 200*time.Millisecond
	}
	return e
}

// decodeJSON decodes what a server of RocketMQ says is JSON: numbers that are
// keys may be without quotes.
func decodeJSON(b []byte, v any) error {
	if err := json.Unmarshal(b, v); err != nil {
		return json.Unmarshal(quoteKeys(b), v)
	}
	return nil
}

// quoteKeys puts numbers that are keys into quotes; what stands in strings stays
// as it is.
func quoteKeys(b []byte) []byte {
	out := make([]byte, 0, len(b)+16)
	for i := 0; i < len(b); {
		n := 1
		if b[i] == '"' {
			for n < len(b)-i && b[i+n] != '"' {
				if b[i+n] == '\\' {
					n++
				}
				n++
			}
			n = min(n+1, len(b)-i)
		}
		out = append(out, b[i:i+n]...)
		if i += n; b[i-1] != '{' && b[i-1] != ',' || n > 1 {
			continue
		}
		digits := 0
		for i+digits < len(b) && b[i+digits] >= '0' && b[i+digits] <= '9' {
			digits++
		}
		if digits > 0 && i+digits < len(b) && b[i+digits] == ':' {
			out = append(append(append(out, '"'), b[i:i+digits]...), '"')
			i += digits
		}
	}
	return out
}

// fromNames asks the name servers, one after the other. The one that answered last is
// asked first, as one that hangs takes its time each time.
func (c *cluster) fromNames(ctx context.Context, code int, fields map[string]string) (*remoting.Command, error) {
	c.mu.Lock()
	from := max(slices.Index(c.op.NameServers, c.first), 0)
	c.mu.Unlock()
	var last error
	for i := range c.op.NameServers {
		addr := c.op.NameServers[(from+i)%len(c.op.NameServers)]
		cmd, err := c.ask(ctx, addr, code, fields, nil)
		if err == nil || fault.ClassOf(err) == fault.NotFound {
			c.mu.Lock()
			c.first = addr
			c.mu.Unlock()
			return cmd, err
		}
		last = err
	}
	return nil, last
}

// permissions of a topic on a broker.
const (
	permRead  = 4
	permWrite = 2
)

// maxQueues bounds the queues of a topic on a broker.
const maxQueues = 16384

// routeData is what name servers say of a topic; what several of them say may be in one.
type routeData struct {
	BrokerDatas []struct {
		BrokerName  string
		BrokerAddrs map[string]string
	}
	QueueDatas []struct {
		BrokerName                          string
		Perm, ReadQueueNums, WriteQueueNums int
	}
}

// add adds what another name server says.
func (data *routeData) add(more routeData) {
	data.BrokerDatas, data.QueueDatas = append(data.BrokerDatas, more.BrokerDatas...), append(data.QueueDatas, more.QueueDatas...)
}

// decodeRoute reads the answer of a name server that was asked at a time.
func decodeRoute(b []byte, at time.Time) (*route, error) {
	var data routeData
	if err := decodeJSON(b, &data); err != nil {
		return nil, err
	}
	return data.route(at)
}

func (data *routeData) route(at time.Time) (*route, error) {
	r := &route{brokers: map[string]string{}, queues: map[string]int{}, perms: map[string]int{}, at: at}
	for _, b := range data.BrokerDatas {
		if addr := b.BrokerAddrs["0"]; addr != "" {
			r.brokers[b.BrokerName] = addr
		}
	}
	for _, q := range data.QueueDatas {
		if r.brokers[q.BrokerName] == "" {
			r.away = append(r.away, q.BrokerName)
			continue
		}
		r.queues[q.BrokerName] = q.WriteQueueNums
		if perm, told := r.perms[q.BrokerName]; !told || q.Perm < perm {
			r.perms[q.BrokerName] = q.Perm
		}
		n := max(q.ReadQueueNums, q.WriteQueueNums)
		if n > maxQueues || len(r.read)+len(r.write)+n > 4*maxQueues {
			return nil, fmt.Errorf("broker %s has %d queues of it", q.BrokerName, n)
		}
		for i := range n {
			r.all = append(r.all, queue{q.BrokerName, i})
		}
		for i := range q.ReadQueueNums {
			if q.Perm&permRead != 0 {
				r.read = append(r.read, queue{q.BrokerName, i})
			}
		}
		for i := range q.WriteQueueNums {
			if q.Perm&permWrite != 0 {
				r.write = append(r.write, queue{q.BrokerName, i})
			}
		}
	}
	for _, of := range []*[]queue{&r.read, &r.write, &r.all} {
		slices.SortFunc(*of, queue.compare)
		*of = slices.Compact(*of)
	}
	return r, nil
}

// missing judges that name servers knew no route of a topic. They forget a
// broker, and with it its topics, when its connection ends: only while every
// broker that had the topic is there is the topic gone. So they are asked for the route
// once more between two looks that find all brokers: one may just have come back, or
// just leave.
func (c *cluster) missing(ctx context.Context, topic string, old *route) (*remoting.Command, error) {
	return judgeMissing(func() error { return c.complete(ctx, old) }, func() (*remoting.Command, error) { return c.askRoute(ctx, topic) })
}

func judgeMissing(complete func() error, ask func() (*remoting.Command, error)) (*remoting.Command, error) {
	if err := complete(); err != nil {
		return nil, err
	}
	cmd, err := ask()
	if err == nil || fault.ClassOf(err) != fault.NotFound {
		return cmd, err
	}
	if err := complete(); err != nil {
		return nil, err
	}
	return nil, err
}

// complete is an error while a broker that had the topic, by its route, is away.
func (c *cluster) complete(ctx context.Context, old *route) error {
	there, err := c.masters(ctx)
	if err != nil {
		return err
	}
	if old != nil {
		for name := range old.brokers {
			if there[name] == "" {
				return unavailable(fmt.Errorf("broker %s, which has the topic, is away", name))
			}
		}
	}
	return nil
}

// masters are the addresses of the cluster's brokers, by name.
func (c *cluster) masters(ctx context.Context) (map[string]string, error) {
	cmd, err := c.fromNames(ctx, reqCluster, nil)
	if err != nil {
		return nil, err
	}
	var data struct {
		BrokerAddrTable map[string]struct {
			Cluster     string
			BrokerAddrs map[string]string
		}
	}
	if err := decodeJSON(cmd.Body, &data); err != nil {
		return nil, unavailable(err)
	}
	out := map[string]string{}
	for name, b := range data.BrokerAddrTable {
		if addr := b.BrokerAddrs["0"]; addr != "" && b.Cluster == c.op.Cluster {
			out[name] = addr
		}
	}
	if len(out) == 0 {
		return nil, unavailable(fmt.Errorf("no broker of cluster %s is there", c.op.Cluster))
	}
	return out, nil
}

// offset asks for one of a queue's offsets.
func (c *cluster) offset(ctx context.Context, addr string, code int, topic string, q queue, more map[string]string) (int64, error) {
	fields := map[string]string{"topic": topic, "queueId": strconv.Itoa(q.id)}
	maps.Copy(fields, more)
	cmd, err := c.ask(ctx, addr, code, fields, nil)
	if err != nil {
		return 0, err
	}
	n, err := cmd.Int("offset")
	if err != nil {
		return 0, unavailable(err)
	}
	return n, nil
}

// committed is a group's offset in a queue; ok is false where it has none.
func (c *cluster) committed(ctx context.Context, addr, topic, group string, q queue) (n int64, ok bool, err error) {
	cctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	cmd, err := c.call(cctx, addr, reqQueryOffset, map[string]string{"consumerGroup": group, "topic": topic, "queueId": strconv.Itoa(q.id), "setZeroIfNotFound": "false"}, nil)
	switch {
	case err != nil:
		return 0, false, unavailable(err)
	case cmd.Code == resQueryNotFound:
		return 0, false, nil
	case cmd.Code != resOK:
		return 0, false, answered(cmd)
	}
	if n, err = cmd.Int("offset"); err != nil {
		return 0, false, unavailable(err)
	}
	return n, true, nil
}

// place is where a group goes on in a queue, and where that ends. Where it has no place
// (known is false), as in a queue that came after it, and where its place is not there,
// any more or yet, that is the beginning.
func (c *cluster) place(ctx context.Context, addr, topic, group string, q queue) (at, end int64, known bool, err error) {
	if at, known, err = c.committed(ctx, addr, topic, group, q); err != nil {
		return 0, 0, false, err
	}
	if end, err = c.offset(ctx, addr, reqMaxOffset, topic, q, nil); err != nil || known && at == end {
		return at, end, known, err
	}
	begin, err := c.offset(ctx, addr, reqMinOffset, topic, q, nil)
	if !known || at < begin || at > end {
		at = begin
	}
	return at, end, known, err
}

func (c *cluster) commit(ctx context.Context, addr, topic, group string, q queue, offset int64) error {
	_, err := c.ask(ctx, addr, reqCommit, map[string]string{"consumerGroup": group, "topic": topic, "queueId": strconv.Itoa(q.id), "commitOffset": strconv.FormatInt(offset, 10)}, nil)
	return err
}

// notSent reports whether a request surely had no effect.
func notSent(err error) bool { return errors.Is(err, remoting.ErrNotSent) }
