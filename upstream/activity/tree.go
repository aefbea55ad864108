package activity

import "slices"

// Node is a backend's place in the tree of those that wait.
type Node struct {
	PID     int
	Backend *Backend // nil for one that the snapshot does not have: it has ended, or is a prepared transaction
	Depth   int      // 0 for those that all others wait for
	// Others is how many more backends it waits for than the one it stands
	// under.
	Others int
	// Cycle marks a backend at depth 0 that waits all the same, for one that waits
	// for it: a deadlock that the server is about to end.
	Cycle bool
}

// Tree orders those that wait below those they wait for, each once. Who waits
// for several stands as near to the root as it can: behind a row's lock everybody
// waits for everybody before them, too. Those who hold up the most come first.
func Tree(backends []Backend) []Node {
	t := tree{known: make(map[int]*Backend), behind: make(map[int][]int), below: make(map[int][]int), placed: make(map[int]bool)}
	var roots []int
	for i := range backends {
		t.known[backends[i].PID] = &backends[i]
	}
	for i := range backends {
		for _, pid := range backends[i].blockers() {
			if b := t.known[pid]; (b == nil || !b.Waits()) && t.behind[pid] == nil {
				roots = append(roots, pid)
			}
			t.behind[pid] = append(t.behind[pid], backends[i].PID)
		}
	}
	t.place(roots...)
	for i := range backends { // what is left waits in a circle
		if backends[i].Waits() && !t.placed[backends[i].PID] {
			pid := t.circle(backends[i].PID)
			roots = append(roots, pid)
			t.place(pid)
		}
	}
	weight := make(map[int]int)
	for _, pid := range roots {
		weight[pid] = t.size(pid)
	}
	slices.SortStableFunc(roots, func(a, b int) int { return weight[b] - weight[a] })
	for _, pid := range roots {
		t.list(pid, 0)
	}
	return t.nodes
}

// tree is a Tree being made.
type tree struct {
	known  map[int]*Backend
	behind map[int][]int // who waits for each
	below  map[int][]int // who stands under each
	placed map[int]bool
	nodes  []Node
}

// place puts everybody who is not placed yet under the nearest of the roots.
func (t *tree) place(roots ...int) {
	for _, pid := range roots {
		t.placed[pid] = true
	}
	for queue := slices.Clone(roots); len(queue) > 0; queue = queue[1:] {
		for _, pid := range t.behind[queue[0]] {
			if !t.placed[pid] {
				t.placed[pid] = true
				t.below[queue[0]] = append(t.below[queue[0]], pid)
				queue = append(queue, pid)
			}
		}
	}
}

// circle finds a backend of the circle that one waits for, or is in.
func (t *tree) circle(pid int) int {
	for seen := make(map[int]bool); !seen[pid]; pid = t.known[pid].blockers()[0] {
		seen[pid] = true
	}
	return pid
}

func (t *tree) size(pid int) int {
	n := 1
	for _, p := range t.below[pid] {
		n += t.size(p)
	}
	return n
}

func (t *tree) list(pid, depth int) {
	n := Node{PID: pid, Backend: t.known[pid], Depth: depth}
	if n.Backend != nil {
		n.Others = len(n.Backend.blockers())
		n.Cycle = depth == 0 && n.Others > 0
		if depth > 0 {
			n.Others--
		}
	}
	t.nodes = append(t.nodes, n)
	for _, p := range t.below[pid] {
		t.list(p, depth+1)
	}
}

// blockers are those the backend waits for, each once. A group of parallel
// workers may be said to wait for itself.
func (b *Backend) blockers() []int {
	var list []int
	for _, pid := range b.BlockedBy {
		if pid != b.PID && !slices.Contains(list, pid) {
			list = append(list, pid)
		}
	}
	return list
}
