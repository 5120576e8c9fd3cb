package weft

import (
	"github.com/spf13/pflag"

	"github.com/weft-mesh/weft/controlplane/server"
	"github.com/weft-mesh/weft/tools/proxycmd"
)

// nacosFlags say where proxies are registered.
type nacosFlags struct {
	proxycmd.NacosFlags
	group string
}

func (n *nacosFlags) add(f *pflag.FlagSet, cfg *server.Config) {
	n.Add(f, "proxies are registered")
	f.StringVar(&n.group, "nacos-group", proxycmd.Env("WEFT_NACOS_GROUP", "DEFAULT_GROUP"), "group of Nacos that the mesh is a service of (WEFT_NACOS_GROUP)")
	f.StringVar(&cfg.Service, "mesh", proxycmd.Env("WEFT_MESH", "weft"), "name of the mesh: the service's name in Nacos (WEFT_MESH)")
}

// open sets cfg's registry; the function that it gives closes it.
func (n *nacosFlags) open(cfg *server.Config) (func(), error) {
	r, files, stop, err := n.Open(n.group, cfg.Log)
	if r != nil {
		cfg.Registry = r
	}
	if files != nil {
		cfg.TLSSources = append(cfg.TLSSources, files)
	}
	return stop, err
}
