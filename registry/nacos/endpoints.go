package nacos

import (
	"cmp"
	"context"
	"iter"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// Endpoint is where an instance of an application's service is.
type Endpoint struct {
	// Addr is "host:port".
	Addr string
	// Weight is its share of the load relative to others', above 0.
	Weight float64
}

// Endpoints follows a service that applications register, of any group and in the
// clusters that are named (all without any): its healthy and enabled instances with a
// weight above 0, sorted. It yields them as they are, empty where there is no such
// service, and then on each change; see Watch for errors and the end. The user needs to
// read the service, no more.
func (r *Registry) Endpoints(ctx context.Context, group, name string, clusters []string) iter.Seq2[[]Endpoint, error] {
	return poll(ctx, r, func(ctx context.Context) ([]Endpoint, error) {
		v := url.Values{"serviceName": {name}, "groupName": {group}}
		if len(clusters) > 0 {
			v.Set("clusterName", strings.Join(clusters, ","))
		}
		var list []entry
		if err := r.client.call(ctx, http.MethodGet, "/v3/client/ns/instance/list", v, &list); err != nil && !hasCode(err, codeServiceMissing) {
			return nil, err
		}
		return endpointsOf(list), nil
	}, func(a, b Endpoint) bool { return a == b })
}

// endpointsOf are those of a list that may be called.
func endpointsOf(list []entry) []Endpoint {
	out := []Endpoint{}
	for i := range list {
		e := &list[i]
		if e.Healthy && e.Enabled && e.Weight > 0 && e.Weight <= maxWeight && e.IP != "" && e.Port > 0 && e.Port <= 65535 {
			out = append(out, Endpoint{net.JoinHostPort(e.IP, strconv.FormatUint(uint64(e.Port), 10)), e.Weight})
		}
	}
	slices.SortFunc(out, func(a, b Endpoint) int { return cmp.Compare(a.Addr, b.Addr) })
	return slices.CompactFunc(out, func(a, b Endpoint) bool { return a.Addr == b.Addr })
}
