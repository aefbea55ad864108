package exchange

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"pgproxy/policy"
)

// The guard takes a statement back that has changed more rows than the rule
// allows. How many it changes is known only when it has done so, and by then it
// must not be committed. So outside of a transaction pgproxy wraps it in one of
// its own, and the client hears of its completion only when COMMIT has
// succeeded; inside of one it sets a savepoint, and releases it with the next
// message. What does not write pays nothing.
//
// The command tag tells of the rows that the statement names, and not of those
// that a foreign key's cascade, a trigger or a WITH clause changes. Those are
// counted by the server's own statistics: see changeCounter.
//
// Statements that refuse to run inside of a transaction block refuse to run
// beside others in a message, too, and change no rows themselves: none of them
// has to be left unwrapped. What was not seen to change rows and did so all the
// same is told of afterwards, with a WARNING.

// sendGuarded sends a part that changes rows so that it can be taken back. What
// opens the guard, the part, the count and the check of the settings go out in
// one write; keeping or taking back is a second one.
func (w *run) sendGuarded(i int, begin bool) error {
	seg := w.list[i]
	o := w.opening(begin, true, w.before == nil)
	texts := []string{w.text(seg), w.counted.after(w.closes(i))}
	check := !w.implicit && (w.verifies(i) || i == len(w.list)-1 && w.wantsCheck())
	if check {
		texts = append(texts, w.settings.question(true))
	}
	if err := w.sendBehind(o.texts, texts...); err != nil {
		return err
	}
	if ok, err := w.opened(o); !ok || err != nil {
		return err
	}
	hold := w.a.hold
	w.a.guarded, w.a.hold = true, seg.last
	if err := w.relay(w.a); err != nil {
		return err
	}
	w.a.checkEnd()
	if err := w.takeCount(hold < 0); err != nil {
		return err
	}
	if check {
		if err := w.takeCheck(); err != nil {
			return err
		}
	}
	if w.a.over > 0 {
		return w.takeBack()
	}
	if w.a.failed() {
		return nil
	}
	w.stale = w.saved && !w.whole
	if hold < 0 {
		w.tellHeld()
	}
	w.a.hold = hold
	return nil
}

// opening is what pgproxy sends ahead of a part, which does not run without it.
type opening struct {
	texts         []string
	saved, counts bool
}

// opening begins what the guard can roll back, a transaction or, with save, a
// savepoint, unless there is one, and counts the changes so far. A savepoint that
// an earlier part or message has left is released first: the client's savepoints
// must not be inside of it.
func (w *run) opening(begin, save, count bool) opening {
	o := opening{saved: w.saved, counts: count}
	if w.stale && w.saved && w.status == 'T' {
		o.texts = append(o.texts, "RELEASE SAVEPOINT "+w.savepoint)
		o.saved = false
	}
	switch {
	case begin:
		o.texts = append(o.texts, "BEGIN")
		w.implicit = true
	case save && w.status == 'T' && !w.implicit && !o.saved:
		o.texts = append(o.texts, "SAVEPOINT "+w.savepoint)
		o.saved = true
	}
	if count {
		o.texts = append(o.texts, w.counted.before(begin)...)
	}
	return o
}

// opened takes in the answers to what was sent ahead of a part. It is false when
// one has failed, of which the client was told.
func (w *run) opened(o opening) (bool, error) {
	if len(o.texts) == 0 {
		return true, nil
	}
	r, err := w.replyAhead(len(o.texts))
	if err != nil {
		return false, err
	}
	if !w.tookStep(r) {
		w.implicit = w.implicit && w.status != 'I'
		return false, nil
	}
	w.saved, w.stale = o.saved, false
	if o.counts {
		w.before, err = w.counted.take(r.rows, nil)
	}
	return err == nil, err
}

// closes reports whether the transaction of pgproxy's is committed right behind
// the part of that number. Triggers that were deferred to the COMMIT may then be
// fired for the count, with the same effect.
func (w *run) closes(i int) bool {
	if !w.implicit {
		return false
	}
	return i == len(w.list)-1 || endOfImplicit(&w.r.Message.Statements[w.list[i+1].first]) == "COMMIT"
}

// tellHeld tells the client of the completion that was kept.
func (w *run) tellHeld() {
	a := w.a
	a.said = append(a.said, a.held...)
	a.bytes += int64(len(a.held))
	a.held = nil
}

// takeCount takes in the count that was sent along with a part, and says
// whether too much was changed. more says that parts follow: an error that the
// COMMIT among them would have met comes behind the completion of this one.
func (w *run) takeCount(more bool) error {
	r, err := w.reply()
	if err != nil {
		return err
	}
	w.session.Send(r.async)
	w.session.Send(r.notices) // of triggers that were deferred
	a := w.a
	if a.sqlstate != "" {
		return nil // the transaction has failed, and so has the count
	}
	if r.failure != nil {
		if more {
			w.tellHeld()
		}
		w.tell(r)
		return nil
	}
	before := w.before
	after, err := w.counted.take(r.rows, before)
	if err != nil {
		return err
	}
	w.before = after
	limit := w.r.Rule.MaxAffectedRows
	if !after.on {
		if a.over == 0 && w.hides() {
			a.held = nil
			a.affected = 0
			a.fail(uncountedError(&w.r.Rule))
		}
		return nil
	}
	changed := after.since(before)
	if changed > limit {
		a.over, a.ended = max(a.over, changed), true
	}
	if byTag := changedRows(a.tag); a.held != nil && changed > byTag {
		a.affected += changed - max(byTag, 0)
	}
	return nil
}

// hides reports whether some statement of the message changes rows that its tag
// does not count.
func (w *run) hides() bool {
	for i := w.r.First; i < len(w.r.Message.Statements); i++ {
		if w.r.Memory.Hidden(w.r.Message, i) {
			return true
		}
	}
	return false
}

// takeBack undoes a part that changed too much. A transaction of the client's
// goes on without it.
func (w *run) takeBack() error {
	a := w.a
	byItself := a.over
	if n := changedRows(a.tag); n >= 0 {
		byItself = n
	}
	n := affectedError(&w.r.Rule, a.over, byItself)
	a.held, a.affected = nil, 0
	w.before = nil
	w.session.Capped("max_affected_rows")
	a.truncated = true
	if w.saved {
		goesOn := "The transaction goes on without it."
		if len(w.list) > 1 && w.whole {
			goesOn = "The transaction goes on as it was before this message."
		}
		n.Detail = strings.TrimSpace(n.Detail + " " + goesOn)
		if err := w.backToSavepoint(); err != nil {
			return err
		}
		w.saved, w.checked = false, false // what was checked is undone
		a.settled = true
	}
	a.fail(n)
	return nil
}

// backToSavepoint rolls back to the guard's savepoint. A cancel that comes too
// late for the client's statement may hit the first try.
func (w *run) backToSavepoint() error {
	back := "ROLLBACK TO SAVEPOINT " + w.savepoint + "; RELEASE SAVEPOINT " + w.savepoint
	for try := 0; ; try++ {
		r, err := w.roundTrip(back)
		if err != nil {
			return err
		}
		w.session.Send(r.async)
		switch {
		case r.failure == nil:
			return nil
		case try > 0 || r.failure.Code != codeQueryCanceled:
			return fmt.Errorf("%w: %s", ErrNotTakenBack, r.failure.Message)
		}
	}
}

// endOfImplicit tells how the transaction of pgproxy's is to end before a
// statement that ends, or does not permit, the one that the server makes of a
// message's statements: the statement itself then gets the server's own answer.
// It returns "" for any other statement.
func endOfImplicit(stmt *policy.Statement) string {
	switch stmt.Tx {
	case policy.TxCommit:
		if stmt.Chains {
			return "ROLLBACK" // it will be an error
		}
		return "COMMIT"
	case policy.TxRollback, policy.TxSavepoint, policy.TxRollbackTo:
		return "ROLLBACK"
	}
	return ""
}

// endImplicit ends the transaction of pgproxy's by COMMIT or ROLLBACK. What a dry
// run would commit is taken back.
func (w *run) endImplicit(end string) error {
	a := w.a
	if end == "COMMIT" {
		if ok, err := w.proceed(); err != nil {
			return err
		} else if !ok {
			end, a.settled = "ROLLBACK", true
		}
	}
	dry := end == "COMMIT" && w.dry
	texts := []string{end}
	if dry {
		texts = takeBackDry("ROLLBACK")
	}
	check := w.wantsCheck()
	if check {
		texts = append(texts, w.settings.question(false))
	}
	if err := w.send(texts...); err != nil {
		return err
	}
	r, err := w.reply()
	if err == nil && dry {
		err = w.takenBack()
	}
	if err != nil {
		return err
	}
	w.implicit, a.guarded = false, false
	w.session.Send(r.notices) // of triggers that were deferred
	switch {
	case r.failure != nil:
		w.tell(r)
	case dry:
		w.tellDry()
		w.tellHeld()
	case end == "COMMIT" && r.tag != "COMMIT":
		a.affected = 0
		a.fail(errorNotice(codeInternal, "pgproxy: the statement was rolled back by the server"))
	case end == "COMMIT":
		w.tellHeld()
	default:
		a.held = nil
	}
	if end == "ROLLBACK" && a.failed() {
		a.affected = 0
	}
	w.say(a)
	w.session.Send(r.async)
	if w.status == 'I' {
		w.cursors.transactionEnded()
	}
	if check {
		return w.takeCheck()
	}
	return nil
}

// changeCounter counts the rows that the session changes in the tables of its
// database, by the server's own statistics. A statement's transaction holds a
// RowExclusiveLock on every table that it, a cascade or a trigger of it has
// changed, so that only those are looked at, however many tables there are.
//
// The statistics of a table hold what earlier transactions of the session have
// changed, too, until the server has put it into the shared ones. So the counts
// before and after are compared table by table. A table that has no count
// before was not changed by this session yet, as far as known: oids holds
// those that were. unsure says that others may have been, by statements whose
// changes nobody counted; the next count then looks at all tables.
type changeCounter struct {
	oids   map[string]int64
	unsure bool
}

// maxCounted bounds the tables that are asked for by their number.
const maxCounted = 256

// changeCount is the rows changed so far, by table.
type changeCount struct {
	on     bool // the server's track_counts
	tables map[string]int64
}

// since is how many rows were changed after another count.
func (c *changeCount) since(before *changeCount) int64 {
	var n int64
	for oid, rows := range c.tables {
		n += rows - before.tables[oid]
	}
	return n
}

// Queries for the counts: a row has the table's number, its count, whether the
// server counts at all (track_counts), and its relkind where that is not known to
// be 'r'. Joins and functions that are not needed are left out, since planning
// takes most of the time.
var (
	countKnown  = "SELECT c, " + changedRowsOf("c") + ", " + trackCounts + " FROM pg_catalog.unnest('{%s}'::pg_catalog.oid[]) c"
	countLocked = "SELECT l.relation, " + changedRowsOf("l.relation") + ", " + trackCounts +
		", (SELECT c.relkind FROM ONLY pg_catalog.pg_class c WHERE c.oid OPERATOR(pg_catalog.=) l.relation) FROM pg_catalog.pg_lock_status() l" +
		" WHERE l.pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid() AND l.locktype OPERATOR(pg_catalog.=) 'relation'" +
		" AND l.mode OPERATOR(pg_catalog.=) 'RowExclusiveLock' AND l.relation OPERATOR(pg_catalog.>=) 16384::pg_catalog.oid"
	countAll = "SELECT c.oid, " + changedRowsOf("c.oid") + ", " + trackCounts +
		" FROM ONLY pg_catalog.pg_class c WHERE c.relkind OPERATOR(pg_catalog.=) 'r' AND c.oid OPERATOR(pg_catalog.>=) 16384::pg_catalog.oid AND " +
		changedRowsOf("c.oid") + " OPERATOR(pg_catalog.>) 0 UNION ALL SELECT 0, 0, " + trackCounts
)

const trackCounts = "pg_catalog.current_setting('track_counts')"

func changedRowsOf(oid string) string {
	return "pg_catalog.pg_stat_get_xact_tuples_inserted(" + oid + ") OPERATOR(pg_catalog.+) " +
		"pg_catalog.pg_stat_get_xact_tuples_updated(" + oid + ") OPERATOR(pg_catalog.+) pg_catalog.pg_stat_get_xact_tuples_deleted(" + oid + ")"
}

// before are the queries before a statement. begins says that a transaction has
// just begun, which has no locks yet: looking for them takes time where other
// sessions hold many.
func (c *changeCounter) before(begins bool) []string {
	oids := append(slices.Sorted(maps.Keys(c.oids)), "0") // at least one row tells track_counts
	known := fmt.Sprintf(countKnown, strings.Join(oids, ","))
	switch {
	case c.unsure || len(c.oids) > maxCounted:
		return []string{countAll}
	case begins:
		return []string{known}
	}
	return []string{known, countLocked}
}

// after is the query behind a statement. closes says that the transaction ends
// right behind it.
func (c *changeCounter) after(closes bool) string {
	if closes {
		return "SET CONSTRAINTS ALL IMMEDIATE;" + countLocked
	}
	return countLocked
}

// take reads the rows of the queries. The count behind a statement goes on from
// the one before it; that one goes on from nil.
func (c *changeCounter) take(rows [][]string, before *changeCount) (*changeCount, error) {
	count := &changeCount{tables: make(map[string]int64)}
	if before != nil {
		count.on = before.on
		maps.Copy(count.tables, before.tables)
	}
	for _, row := range rows {
		if len(row) < 3 {
			return nil, garbled('D')
		}
		n, err := strconv.ParseInt(row[1], 10, 64)
		if err != nil {
			return nil, garbled('D')
		}
		count.on = row[2] == "on"
		if n > 0 && (len(row) == 3 || row[3] == "r") {
			count.tables[row[0]] = n
		}
	}
	c.oids, c.unsure = count.tables, false
	return count, nil
}
