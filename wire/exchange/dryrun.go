package exchange

import (
	"fmt"
	"slices"

	"pgproxy/policy"
	"pgproxy/wire/frame"
)

// A dry run shows what statements would do, and keeps nothing of it. Outside of
// a transaction a message that may change something gets one of pgproxy's, as
// the guard does it, which ends in a ROLLBACK. Inside of one of the client's its
// COMMIT becomes a ROLLBACK. What a rollback does not undo was refused by policy,
// but for sequences, of which the client is told once.

// leaves reports whether the message may leave something behind. A SELECT from
// what may be a view counts: a view may call functions that write.
func (w *run) leaves() bool {
	for i := w.r.First; i < len(w.r.Message.Statements); i++ {
		if st := &w.r.Message.Statements[i]; st.MayChange() || st.Looks {
			return true
		}
	}
	return false
}

// takeBackDry is what a dry run sends instead of COMMIT: what COMMIT would have
// checked first, and then back, a ROLLBACK.
func takeBackDry(back string) []string { return []string{"SET CONSTRAINTS ALL IMMEDIATE", back} }

// takenBack takes in the answer to the second of those.
func (w *run) takenBack() error {
	r, err := w.reply()
	if err != nil {
		return err
	}
	w.session.Send(r.async)
	if r.failure != nil { // it is taken back by the session's end
		return fmt.Errorf("%w: %s", ErrNotTakenBack, r.failure.Message)
	}
	return nil
}

// endsDry reports whether a part is the COMMIT of a dry run's transaction.
func (w *run) endsDry(seg segment) bool {
	return w.dry && w.status == 'T' && !w.implicit && seg.first <= seg.last && w.r.Message.Statements[seg.first].Tx == policy.TxCommit
}

// endDry sends a ROLLBACK in the place of the client's COMMIT.
func (w *run) endDry(seg segment) error {
	back := "ROLLBACK"
	if w.r.Message.Statements[seg.first].Chains {
		back = "ROLLBACK AND CHAIN"
	}
	if err := w.send(takeBackDry(back)...); err != nil {
		return err
	}
	r, err := w.reply()
	if err == nil {
		err = w.takenBack()
	}
	if err != nil {
		return err
	}
	w.saved = false
	w.session.Send(r.notices) // of triggers that were deferred
	if !w.tookStep(r) {
		return nil
	}
	w.tellDry()
	tag := frame.AppendComplete(nil, "ROLLBACK")
	if act, err := w.a.frame('C', len(tag)-frame.HeaderLen, tag[frame.HeaderLen:]); act != pass || err != nil {
		return err
	}
	w.a.said = append(w.a.said, tag...)
	return nil
}

// tellDry tells, once in a message, that nothing was kept, where something might
// have been.
func (w *run) tellDry() {
	if w.told || !slices.ContainsFunc(w.r.Message.Statements, func(st policy.Statement) bool { return st.MayChange() || st.Tx == policy.TxCommit || st.Cursor.Hold }) {
		return
	}
	w.told = true
	n := warning("pgproxy: dry run: nothing was kept")
	if !w.dryTold {
		w.dryTold = true
		n.Detail = "Sequences that were used have moved on, and stay so."
		n.Hint = "SET pgproxy.dry_run = off, and send it again, to do it."
	}
	w.a.say(n)
}
