package worker

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// limit bounds what this process can do to others. It takes no more memory than it
// was given, is the first that the kernel ends when memory is short, has a low
// priority, and leaves no core file, which would hold the text it was reading.
func limit(maxMemory uint64) error {
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}); err != nil {
		return fmt.Errorf("limiting core files: %w", err)
	}
	// Some machines forbid both. Errors are ignored: they protect other processes
	// and are not needed here.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0)
	_ = syscall.Setpriority(syscall.PRIO_PROCESS, 0, 5)

	used, err := virtualMemory()
	if err != nil {
		return err
	}
	bound := &syscall.Rlimit{Cur: used + maxMemory, Max: used + maxMemory}
	if err := syscall.Setrlimit(syscall.RLIMIT_AS, bound); err != nil {
		return fmt.Errorf("limiting memory: %w", err)
	}
	return nil
}

// virtualMemory is the size of this process's address space in bytes, which
// is large in a Go program from the start.
func virtualMemory() (uint64, error) {
	data, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, fmt.Errorf("reading own size: %w", err)
	}
	pages, _, _ := strings.Cut(string(data), " ")
	n, err := strconv.ParseUint(pages, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("reading own size: %w", err)
	}
	return n * uint64(os.Getpagesize()), nil
}
