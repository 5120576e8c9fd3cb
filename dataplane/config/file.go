package config

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/configfile"
	"github.com/weft-mesh/weft/pkg/resource"
)

// cut makes a memory of what of a snapshot file is of the own scope. What cannot be
// enforced here is withheld, as a control plane that knows this proxy would do. On
// demand it is all of the namespaces: what of it is used is found when it is.
func (c *Client) cut(lg *discoveryv1.LastGood) (*memory, error) {
	scope := configfile.Scope(c.cfg.Info.GetNamespaces())
	for _, mine := range scope {
		if !configfile.CoversScope(lg.Scope, mine) {
			return nil, fmt.Errorf("is of %s and does not have %s, which this proxy serves", strings.Join(lg.Scope, " "), mine)
		}
	}
	can := resource.FeaturesOf(c.cfg.Info.GetCapabilities())
	m := newMemory()
	m.lineage, m.revision, m.scope = lg.Lineage, lg.Revision, scope
	for _, r := range lg.Resources {
		if !configfile.Covers(scope, r.Name) {
			continue
		}
		res := &configv1.Resource{}
		if err := proto.Unmarshal(r.Resource, res); err != nil {
			return nil, fmt.Errorf("has a %s that cannot be read: %w", r.Name, err)
		}
		why := ""
		if res.Name != r.Name {
			why = fmt.Sprintf("is %q inside", res.Name)
		} else if field, err := c.cfg.Check(res); err != nil {
			why = field + " " + err.Error()
		} else if lacks := resource.Requires(res).Without(can).Names(); len(c.cfg.Info.GetCapabilities()) > 0 && len(lacks) > 0 {
			why = "this node lacks " + strings.Join(lacks, ", ")
		}
		if why != "" {
			c.cfg.Log.Error("a resource of the snapshot file cannot be enforced here and is withheld", "resource", r.Name, "reason", why)
			m.withheld = append(m.withheld, &configv1.Withheld{Name: r.Name, Version: r.Version, Reason: why, Governs: governs(r.Name)})
			continue
		}
		digest, _ := resource.ParseDigest(r.OfferedDigest)
		m.add(r.Name, &kept{offered: r.Version, digest: digest, good: snapshot.Versioned{Resource: res, Version: r.Version}, bytes: r.Resource})
	}
	for _, w := range lg.Withheld {
		if configfile.Covers(scope, w.Name) {
			m.withheld = append(m.withheld, w)
		}
	}
	return m, nil
}

// governs reports whether a resource may say what is allowed: one of a kind that
// is not known here may.
func governs(name string) bool {
	kind, _, _ := strings.Cut(name, "/")
	info, known := resource.Lookup(kind)
	return !known || resource.Governs(info.Kind)
}
