package listener

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// fewDescriptors, in the environment, makes this test the process that has few.
const fewDescriptors = "WEFT_TEST_FEW_DESCRIPTORS"

// TestNoDescriptors: a process that has no descriptors left goes on; who connects then
// is closed at once and does not wait, and once there are some again, is served.
func TestNoDescriptors(t *testing.T) {
	if os.Getenv(fewDescriptors) != "" {
		echo(t)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^TestNoDescriptors$")
	cmd.Env = append(os.Environ(), fewDescriptors+"=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = in.Close() // which ends it
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}()
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	served := func() (net.Conn, bool) {
		c, err := net.Dial("tcp", strings.TrimSpace(addr))
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(2 * time.Minute))
		_, _ = c.Write([]byte("x"))
		_, err = io.ReadFull(c, make([]byte, 1))
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("it waits")
		}
		return c, err == nil
	}
	var open []net.Conn
	good, refused := 0, 0
	for range 100 {
		c, ok := served()
		open = append(open, c)
		if ok {
			good++
		} else {
			refused++
		}
	}
	if good < 10 || refused < 30 {
		t.Errorf("%d were served, %d refused", good, refused)
	}
	for _, c := range open {
		_ = c.Close()
	}
	for limit := time.Now().Add(time.Minute); ; {
		c, ok := served()
		_ = c.Close()
		if ok {
			break
		}
		if time.Now().After(limit) {
			t.Fatal("it does not recover")
		}
	}
}

// echo answers what it is told, with 64 descriptors.
func echo(t *testing.T) {
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 64, Max: 64}); err != nil {
		t.Fatal(err)
	}
	l, err := Listen("127.0.0.1:0", 1000)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = fmt.Fprintln(os.Stdout, l.Addr())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		_ = l.Close()
	}()
	for {
		c, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			t.Fatal(err)
		}
		go func() {
			_, _ = io.Copy(c, c)
			_ = c.Close()
		}()
	}
}
