package policy

var redactionNames = map[Redaction]string{Full: "full", Redacted: "redacted", Normalized: "normalized"}

func (r Redaction) String() string { return redactionNames[r] }

// MarshalText returns the name.
func (r Redaction) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads the name, as ParseRedaction does.
func (r *Redaction) UnmarshalText(text []byte) (err error) {
	*r, err = ParseRedaction(string(text))
	return err
}
