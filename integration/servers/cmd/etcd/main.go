// Command etcd is the real etcd server, built from the version that go.mod pins,
// for tests.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
