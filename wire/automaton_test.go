package wire

import "testing"

// next is the automaton's whole table: what each message does, and whether
// what follows is skipped.
func TestAutomaton(t *testing.T) {
	for _, tt := range []struct {
		typ     byte
		body    int
		at      action // while not skipping
		skips   bool   // afterwards
		skipped action // while skipping
		ends    bool   // the skipping
	}{
		{'Q', 10, query, false, drop, false},
		{'P', 10, refuseExtended, true, drop, false},
		{'B', 10, refuseExtended, true, drop, false},
		{'D', 10, refuseExtended, true, drop, false},
		{'E', 10, refuseExtended, true, drop, false},
		{'C', 10, refuseExtended, true, drop, false},
		{'F', 10, refuseCall, false, drop, false},
		{'H', 0, drop, false, drop, false},
		{'d', 10, drop, false, drop, false},
		{'c', 0, drop, false, drop, false},
		{'f', 10, drop, false, drop, false},
		{'S', 0, answerSync, false, syncRefused, true},
		{'S', 1, syncBody, false, syncBody, true},
		{'X', 0, terminate, false, terminate, false},
		{'X', 10, terminate, false, terminate, false},
		{'p', 10, unknownType, false, unknownType, false},
		{'Z', 1, unknownType, false, unknownType, false},
		{0, 0, unknownType, false, unknownType, false},
		{'Q', largeMessage, query, false, drop, false},
		{'Q', largeMessage + 1, tooLong, false, tooLong, false},
		{'P', largeMessage + 1, tooLong, false, tooLong, false},
		{'E', smallMessage, refuseExtended, true, drop, false},
		{'E', smallMessage + 1, tooLong, false, tooLong, false},
		{'S', smallMessage + 1, tooLong, false, tooLong, false},
		{'X', smallMessage + 1, tooLong, false, tooLong, false},
	} {
		a := automaton{}
		if got := a.next(tt.typ, tt.body); got != tt.at || a.skipping != tt.skips {
			t.Errorf("%q of %d bytes: action %d, skipping %v; want %d, %v", tt.typ, tt.body, got, a.skipping, tt.at, tt.skips)
		}
		a = automaton{skipping: true}
		if got := a.next(tt.typ, tt.body); got != tt.skipped || a.skipping == tt.ends {
			t.Errorf("%q of %d bytes, skipping: action %d, skipping %v; want %d, %v", tt.typ, tt.body, got, a.skipping, tt.skipped, !tt.ends)
		}
	}
}

// FuzzAutomaton drives the automaton with any sequence of messages. Each byte
// is a message's type, and the next one the length of its body.
func FuzzAutomaton(f *testing.F) {
	f.Add([]byte("P\x01B\x01E\x01S\x00Q\x05"))
	f.Add([]byte("P\x01Q\x05F\x01S\x00S\x00Q\x05"))
	f.Add([]byte("S\x01S\x00H\x00d\x01c\x00f\x01X\x00"))
	f.Add([]byte("P\x01S\x01Q\x05"))
	f.Fuzz(func(t *testing.T, messages []byte) {
		var a automaton
		refused := false // an extended message since the last Sync
		for ; len(messages) >= 2; messages = messages[2:] {
			typ, body := messages[0], int(messages[1])
			act := a.next(typ, body)
			ready := act == answerSync || act == syncRefused || act == syncBody
			switch {
			case (typ == 'S') != ready:
				t.Fatalf("%q: ReadyForQuery is for Sync and for nothing else of the extended protocol", typ)
			case refused && (act == query || act == refuseCall || act == refuseExtended):
				t.Fatalf("%q acted on while skipping to Sync", typ)
			case !refused && typ == 'Q' && act != query:
				t.Fatal("a Query was not run")
			case (act == syncRefused) != (refused && typ == 'S' && body == 0):
				t.Fatalf("Sync after a refusal %v: %v", refused, act)
			}
			switch {
			case act == terminate || act == unknownType || act == tooLong:
				return
			case act == refuseExtended:
				refused = true
			case typ == 'S':
				refused = false
			}
			if a.skipping != refused {
				t.Fatalf("after %q skipping is %v", typ, a.skipping)
			}
		}
	})
}
