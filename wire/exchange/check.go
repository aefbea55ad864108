package exchange

import (
	"fmt"
	"slices"
	"time"

	"pgproxy/policy"
)

// between checks the protected settings before the next part, where one of the
// two begins or ends a transaction.
func (w *run) between(i int) error {
	if !w.verifies(i) || w.status == 'E' {
		return nil
	}
	if !w.checked {
		if err := w.ask(); err != nil || w.a.failed() {
			return err
		}
	}
	return w.restoreNow()
}

// verifies reports whether the settings are checked behind the part of that
// number, before the next one.
func (w *run) verifies(i int) bool {
	if i+1 == len(w.list) || !w.watch || !w.touched {
		return false
	}
	stmts := w.r.Message.Statements
	return stmts[w.list[i].first].Tx != policy.TxNone || stmts[w.list[i+1].first].Tx != policy.TxNone
}

// touches reports whether a part may change settings: by what it runs, or by
// ending a transaction, which fires what was deferred and undoes what was set.
func (w *run) touches(seg segment) bool {
	for i := seg.first; i <= seg.last; i++ {
		st := &w.r.Message.Statements[i]
		switch st.Tx {
		case policy.TxCommit, policy.TxRollback, policy.TxRollbackTo:
			return true
		case policy.TxSavepoint:
			if w.settings.narrowed() {
				return true
			}
		}
		if len(st.Settings) > 0 || st.Opaque || st.Looks {
			return true
		}
	}
	return false
}

// wantsCheck reports whether the protected settings are to be checked after the
// message: it has changed a setting, has ended a transaction in its middle, or
// runs what could do either out of the verdict's sight.
//
// What a view does counts among that, and nearly every SELECT reads what may be
// a view. So one whose text was checked a moment ago is not checked again; it
// stays open, and is checked with the next message after that moment, or at
// the end of the session.
func (w *run) wantsCheck() bool {
	if !w.watch {
		return false
	}
	stmts := w.r.Message.Statements
	looks := false
	for i := w.r.First; i < len(stmts); i++ {
		st := &stmts[i]
		if len(st.Settings) > 0 || st.Opaque || st.Tx != policy.TxNone && len(stmts) > 1 || st.Tx == policy.TxRollbackTo {
			return true
		}
		if st.Tx == policy.TxCommit && w.settings.atCommit || st.Tx == policy.TxSavepoint && w.settings.narrowed() {
			return true
		}
		looks = looks || st.Looks
	}
	switch {
	case !looks && !w.settings.open:
		return false
	case time.Since(w.settings.checkedAt) >= recheckAfter:
		return true
	case looks && !slices.Contains(w.settings.recent[:], w.r.Message):
		return true
	}
	w.settings.open = true
	return false
}

// recheckAfter is how long the check after a text that only reads is good for
// the same text again.
const recheckAfter = 100 * time.Millisecond

// takeCheck takes in the answer to the check that was sent along.
func (w *run) takeCheck() error {
	told, err := w.takeSettings(w.r.Message)
	if told {
		w.checked, w.touched = true, false
	}
	return err
}

// takeSettings takes in the settings that the server was asked for, behind a
// message (nil for none). It is false where the server could not tell them.
func (w *run) takeSettings(msg *policy.Message) (told bool, err error) {
	r, err := w.reply()
	if err != nil {
		return false, err
	}
	w.session.Send(r.async)
	if r.failure != nil {
		return false, w.checkFailed(r)
	}
	w.settings.take(r.rows, msg)
	return true, nil
}

// checkFailed: in a failed transaction nothing can be asked, nor done; a cancel
// that has come too late for the client's message has hit the check.
func (w *run) checkFailed(r *reply) error {
	switch {
	case w.a.failed():
		return nil
	case r.failure.Code == codeQueryCanceled && w.gate.sentTo(w.gate.running()):
		if w.status == 'E' {
			by, _ := w.session.Cancelled()
			w.a.fail(cancelError(by))
			w.a.cancelled = true
		}
		return nil
	}
	return fmt.Errorf("%w: the settings cannot be read: %s", ErrNotRestored, r.failure.Message)
}

// actsAtCommit reports whether the message may have left something to be run
// by the COMMIT of the open transaction.
func (w *run) actsAtCommit() bool {
	for i := w.r.First; i < len(w.r.Message.Statements); i++ {
		if st := &w.r.Message.Statements[i]; st.Opaque || st.Cursor.Hold && st.Looks {
			return true
		}
	}
	return false
}

// ask asks the server for its settings in the middle of a message.
func (w *run) ask() error {
	if err := w.send(w.settings.question(w.status == 'T')); err != nil {
		return err
	}
	return w.takeCheck()
}

// learn asks for the settings before the first message that could change one.
func (w *run) learn() error {
	all := segment{first: w.r.First, last: len(w.r.Message.Statements) - 1}
	if w.settings.known || w.status == 'E' || !w.touches(all) {
		return nil
	}
	if err := w.send(w.settings.question(w.status == 'T')); err != nil {
		return err
	}
	_, err := w.takeSettings(nil) // of before the message
	return err
}

// restoreNow is Restore between two parts of a message. What was changed is
// recorded and put back before the next part is sent.
func (w *run) restoreNow() error {
	names := w.settings.tampered(&w.r.Rule)
	for _, name := range names {
		w.session.Tampered(name)
	}
	if err := w.putBack(names, &w.r.Rule, w.setNow); err != nil {
		return err
	}
	return w.follow(&w.r.Rule, w.r.OwnTimeout, w.setNow)
}

// CheckOpen checks the settings after messages that were not checked, at the
// end of a session, and returns those that were changed.
func (b *Backend) CheckOpen(rule *policy.Rule) ([]string, error) {
	if !b.settings.open || b.status == 'E' || rule.Access == policy.Admin {
		return nil, nil
	}
	r, err := b.execute(b.settings.question(b.status == 'T'))
	if err != nil || r.failure != nil {
		return nil, err
	}
	b.settings.take(r.rows, nil)
	return b.settings.tampered(rule), nil
}
