package policy_test

import (
	"testing"

	"pgproxy/policy"
	"pgproxy/policy/policytest"
)

// TestCorpus judges every case of the corpus at every access.
func TestCorpus(t *testing.T) {
	cases, err := policytest.Load("testdata/corpus")
	if err != nil {
		t.Fatal(err)
	}
	if len(cases) < 300 {
		t.Fatalf("the corpus has %d cases", len(cases))
	}
	judge, err := policy.NewJudge()
	if err != nil {
		t.Fatal(err)
	}
	defer judge.Close()
	for _, c := range cases {
		for _, access := range []policy.Access{policy.Read, policy.Write, policy.Admin} {
			if got := verdict(t, judge, c, access); got != c.Want[access] {
				t.Errorf("%s: at %s: %s, want %s (%s)\n%s", c.Name(), access, got, c.Want[access], c.Reason, c.Messages)
			}
		}
	}
}

// verdict plays the messages of a case in a session of its own and returns
// "ok", or the rule that refused the last.
func verdict(t *testing.T, judge *policy.Judge, c policytest.Case, access policy.Access) string {
	rule, memory := c.Rule(access), new(policy.Memory)
	verdict := ""
	for _, sql := range c.Messages {
		msg, err := judge.Parse(t.Context(), sql)
		if err != nil {
			return refused(t, err.(*policy.Refusal))
		}
		d := policy.Decide(t.Context(), &rule, msg, policy.Session{Memory: memory})
		if d.Refusal == nil {
			memory.Note(msg, len(msg.Statements))
			verdict = "ok"
		} else {
			verdict = refused(t, d.Refusal)
		}
	}
	return verdict
}

// refused checks that a refusal has all that a client needs, and returns its
// rule.
func refused(t *testing.T, r *policy.Refusal) string {
	if len(r.Code) != 5 || r.Message == "" || r.Rule == "" {
		t.Errorf("incomplete refusal: %+v", *r)
	}
	if r.Code == "42501" && r.Detail == "" {
		t.Errorf("refusal without a detail: %+v", *r)
	}
	return r.Rule
}
