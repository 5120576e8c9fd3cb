// Command dapr is Dapr's sidecar, daprd, as a peer of the mesh. It has a module of its
// own, so that nothing of it is among the dependencies of Weft; integration/bench
// builds it, with the tag that Dapr asks for, and runs it.
package main

import "github.com/dapr/dapr/cmd/daprd/app"

func main() { app.Run() }
