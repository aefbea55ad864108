package policy

import "iter"

// TokenKind says what a piece of a statement's text is, for those who show it in
// colours.
type TokenKind byte

const (
	TokenOther   TokenKind = iota // white space, operators, punctuation, parameters
	TokenWord                     // a keyword or an identifier without quotes
	TokenQuoted                   // "identifier"
	TokenText                     // 'text', $$text$$
	TokenNumber                   // 1.5e3
	TokenComment                  // of either form
)

// Tokens splits any text into pieces, which together are the text. It takes
// linear time.
func Tokens(sql string) iter.Seq2[TokenKind, string] {
	kinds := [...]TokenKind{
		lexWord: TokenWord, lexQuoted: TokenQuoted, lexString: TokenText, lexDollar: TokenText,
		lexNumber: TokenNumber, lexParam: TokenOther, lexSign: TokenOther, lexComment: TokenComment,
	}
	return func(yield func(TokenKind, string) bool) {
		other := 0 // where the piece begins that is none of the rest
		for l := range lexemes(sql) {
			kind, end := kinds[l.kind], min(l.end, len(sql))
			if kind == TokenOther {
				continue
			}
			if other < l.start && !yield(TokenOther, sql[other:l.start]) || !yield(kind, sql[l.start:end]) {
				return
			}
			other = end
		}
		if other < len(sql) {
			yield(TokenOther, sql[other:])
		}
	}
}
