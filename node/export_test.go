package node

import "time"

// SetControlGrace is for tests, which can't wait so long. It must be called
// before Watch.
func (n *Node) SetControlGrace(d time.Duration) { n.controlGrace = d }

// SetProbeEvery is the same, before Up.
func (n *Node) SetProbeEvery(d time.Duration) { n.probeEvery = d }
