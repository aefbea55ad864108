package policy

import (
	"fmt"
	"time"

	pg "github.com/pganalyze/pg_query_go/v6"
	"google.golang.org/protobuf/proto"
)

// Signal is a plain call of one of PostgreSQL's two functions that signal
// another backend, as a statement of its own, with constants:
//
//	SELECT pg_terminate_backend(4711)
//
// The proxy serves it itself: it knows whose the backend is, which the text does
// not say.
type Signal struct {
	Function string        // CancelBackend or TerminateBackend
	PID      int           // of the server process
	Timeout  time.Duration // how long to wait for its end; 0 = not at all
	Column   string        // the name of the result's column
}

// The functions of a Signal.
const (
	CancelBackend    = "pg_cancel_backend"
	TerminateBackend = "pg_terminate_backend"
)

// Signals reports whether a rule lets its caller call a function of a Signal on
// a backend that is not one of their own sessions'. Own ones need no rule.
func (r *Rule) Signals(function string) bool {
	if r.MaySignal {
		return r.permits(function, Read)
	}
	return r.permits(function, Admin)
}

// signal judges a Signal that the proxy serves: as the function call that it is,
// which may_signal permits, too. Everybody may signal their own sessions'
// backends.
func (ev *evaluation) signal(i int) *Refusal {
	st := &ev.msg.Statements[i]
	if ev.session.Owns != nil && ev.session.Owns(st.Proxy.Signal.PID) {
		for k := range st.facts.Effects {
			if a := &st.facts.Effects[k]; a.Lasts && ev.rule.DryRun {
				return refuseDryRun(a, a.Pos)
			}
		}
		return nil
	}
	ev.signals = true
	defer func() { ev.signals = false }()
	for k := range st.facts.Effects {
		r := ev.effect(i, &st.facts.Effects[k], 0)
		if r != nil && r.Rule == "function" {
			r.Detail = fmt.Sprintf("Backend %d is not one of your own sessions', and may_signal is false in your rule.", st.Proxy.Signal.PID)
			r.Hint = fmt.Sprintf("SHOW pgproxy.sessions has your own sessions. Your rule%s would need may_signal. %s", ev.rule.source(), ev.rule.Ask())
		}
		if r != nil {
			return r
		}
	}
	return nil
}

// signalOf returns the signal that a statement is, nil for any other statement.
// A name without a schema is pg_catalog's function, whatever search_path says:
// that is what the proxy does for it.
func signalOf(n *pg.SelectStmt) *Signal {
	if len(n.TargetList) != 1 {
		return nil
	}
	target := n.TargetList[0].GetResTarget()
	call := target.GetVal().GetFuncCall()
	function, builtin := functionName(call.GetFuncname())
	if !builtin || function != CancelBackend && function != TerminateBackend {
		return nil
	}
	// Nothing else may stand in it.
	plain := proto.Equal(n, &pg.SelectStmt{TargetList: n.TargetList, LimitOption: pg.LimitOption_LIMIT_OPTION_DEFAULT, Op: pg.SetOperation_SETOP_NONE}) &&
		proto.Equal(target, &pg.ResTarget{Name: target.Name, Val: target.Val, Location: target.Location}) &&
		proto.Equal(call, &pg.FuncCall{Funcname: call.Funcname, Args: call.Args, Funcformat: call.Funcformat, Location: call.Location})
	if !plain || len(call.Args) == 0 || len(call.Args) > 2 || function == CancelBackend && len(call.Args) != 1 {
		return nil
	}
	s := &Signal{Function: function, Column: function}
	if target.Name != "" {
		s.Column = target.Name
	}
	for i, arg := range call.Args {
		c := arg.GetAConst()
		if c == nil || c.Isnull {
			return nil
		}
		v, ok := c.Val.(*pg.A_Const_Ival)
		switch {
		case !ok:
			return nil
		case i == 0:
			s.PID = int(v.Ival.GetIval())
		case v.Ival.GetIval() < 0: // the server's to refuse
			return nil
		default:
			s.Timeout = time.Duration(v.Ival.GetIval()) * time.Millisecond
		}
	}
	return s
}
