package policy

import (
	_ "embed"
	"fmt"
	"reflect"
	"slices"
	"strings"

	pg "github.com/pganalyze/pg_query_go/v6"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// kindTable is the reviewed list of the parser's nodes. Its first lines explain
// it; TestKindTable holds it against the parser.
//
//go:embed kinds.tsv
var kindTable string

// statementKind is what the table says of a kind of statement.
type statementKind struct {
	tag     string
	access  Access   // the least that permits it
	answers []string // nil for any
	rows    bool     // returns rows, and may do nothing else
	quiet   bool     // runs no code but what it names
	lasts   bool     // a rollback does not undo it
}

// nodeCase is a line of the table: what the nodes of a type are that have a
// value in a field.
type nodeCase struct {
	field protoreflect.FieldDescriptor // nil for all nodes of the type
	value protoreflect.Value
	kind  *statementKind // nil: it depends on the type of the object
	// verb and object are for such a node: its kind is the verb's for the type
	// of object that the field holds.
	verb   string
	object protoreflect.FieldDescriptor
}

// objectVerb is what is done to a type of object.
type objectVerb struct {
	verb   string
	object protoreflect.EnumNumber
}

// kindIndex is the table, by what it is looked up by.
type kindIndex struct {
	cases   map[reflect.Type][]nodeCase
	parts   map[reflect.Type]bool
	objects map[objectVerb]*statementKind
	rows    map[string]bool // by tag
	tags    []string        // all tags, sorted
}

var kinds = readKinds(kindTable)

// readKinds reads the table. It panics on a mistake in it, since the table is part
// of the program.
func readKinds(table string) *kindIndex {
	r := &kindIndex{
		cases:   make(map[reflect.Type][]nodeCase),
		parts:   make(map[reflect.Type]bool),
		objects: make(map[objectVerb]*statementKind),
		rows:    make(map[string]bool),
	}
	for fields := range tableLines(table, 6) {
		if err := r.line(fields); err != nil {
			panic(fmt.Sprintf("policy: kinds.tsv: %q: %v", fields, err))
		}
	}
	slices.Sort(r.tags)
	r.tags = slices.Compact(r.tags)
	return r
}

// line reads one line of the table.
func (r *kindIndex) line(fields []string) error {
	node, when, tag, access := fields[0], fields[1], fields[2], fields[3]
	switch node {
	case "-":
		r.tags = append(r.tags, tag)
		return nil
	case "ObjectType":
		return r.objectType(when, tag, fields)
	}
	t, message := nodeTypes[node], pg.File_pg_query_proto.Messages().ByName(protoreflect.Name(node))
	if t == nil {
		return fmt.Errorf("the parser has no such node")
	}
	t = reflect.PointerTo(t)
	if access == "part" {
		r.parts[t] = true
		return nil
	}
	c, err := condition(message, when)
	if err != nil {
		return err
	}
	c.verb, c.object = objectField(message, tag)
	if c.object == nil {
		if c.kind, err = r.kind(tag, fields); err != nil {
			return err
		}
	}
	r.cases[t] = append(r.cases[t], c)
	return nil
}

// condition reads the column "when".
func condition(message protoreflect.MessageDescriptor, when string) (nodeCase, error) {
	if when == "-" {
		return nodeCase{}, nil
	}
	name, text, _ := strings.Cut(when, "=")
	field := message.Fields().ByName(protoreflect.Name(name))
	if field == nil {
		return nodeCase{}, fmt.Errorf("the node has no field %q", name)
	}
	switch field.Kind() {
	case protoreflect.BoolKind:
		return nodeCase{field: field, value: protoreflect.ValueOfBool(text == "true")}, nil
	case protoreflect.StringKind:
		return nodeCase{field: field, value: protoreflect.ValueOfString(text)}, nil
	case protoreflect.EnumKind:
		if v := field.Enum().Values().ByName(protoreflect.Name(text)); v != nil {
			return nodeCase{field: field, value: protoreflect.ValueOfEnum(v.Number())}, nil
		}
	}
	return nodeCase{}, fmt.Errorf("the field has no value %q", text)
}

// objectField takes a tag like "DROP remove_type" apart. The field is nil for
// any other tag.
func objectField(message protoreflect.MessageDescriptor, tag string) (verb string, field protoreflect.FieldDescriptor) {
	verb, name, _ := strings.Cut(tag, " ")
	return verb, message.Fields().ByName(protoreflect.Name(name))
}

// objectType reads a line for a type of object.
func (r *kindIndex) objectType(name, tag string, fields []string) error {
	object := pg.ObjectType(0).Descriptor().Values().ByName(protoreflect.Name(name))
	if object == nil {
		return fmt.Errorf("the parser has no such type of object")
	}
	verb, words, _ := strings.Cut(tag, " ")
	verbs := []string{verb}
	if verb == "*" {
		verbs = []string{"CREATE", "ALTER", "DROP"}
	}
	for _, verb := range verbs {
		kind, err := r.kind(verb+" "+words, fields)
		if err != nil {
			return err
		}
		r.objects[objectVerb{verb, object.Number()}] = kind
	}
	return nil
}

// tableAccess are the words of the column "access".
var tableAccess = map[string]Access{"read": Read, "write": Write, "admin": Admin}

// kind reads the columns from "access" on.
func (r *kindIndex) kind(tag string, fields []string) (*statementKind, error) {
	access, ok := tableAccess[fields[3]]
	if !ok {
		return nil, fmt.Errorf("unknown access")
	}
	k := &statementKind{tag: tag, access: access}
	switch answers := fields[4]; answers {
	case "=":
		k.answers = []string{tag}
	case "-":
	default:
		k.answers = strings.Split(answers, ", ")
	}
	for mark := range strings.SplitSeq(fields[5], ",") {
		switch mark {
		case "-":
		case "rows":
			k.rows, r.rows[tag] = true, true
		case "quiet":
			k.quiet = true
		case "lasts":
			k.lasts = true
		default:
			return nil, fmt.Errorf("unknown mark")
		}
	}
	r.tags = append(r.tags, tag)
	return k, nil
}

// kindOf returns the kind of a statement, or of a clause that a rule may name
// like one. It returns nil for a node that is not in the table.
func kindOf(n any) *statementKind {
	for _, c := range kinds.cases[reflect.TypeOf(n)] {
		m := n.(protoreflect.ProtoMessage).ProtoReflect()
		switch {
		case c.field != nil && !m.Get(c.field).Equal(c.value):
		case c.kind != nil:
			return c.kind
		default:
			return kinds.objects[objectVerb{c.verb, m.Get(c.object).Enum()}]
		}
	}
	return nil
}

// isPart reports whether a node does nothing by itself. What it does is done by
// what stands below it, or it is a function call, which is judged as such.
func isPart(n any) bool { return kinds.parts[reflect.TypeOf(n)] }

// normalKind is a kind as rules keep it: capitals, single spaces.
func normalKind(name string) string {
	return strings.Join(strings.Fields(strings.ToUpper(name)), " ")
}

// knownKind reports whether a normal kind is a command tag, or the first word
// of one.
func knownKind(kind string) bool {
	return slices.ContainsFunc(kinds.tags, func(tag string) bool { return coversKind(kind, tag) })
}

// coversKind reports whether a rule that names one kind means the other too:
// they are the same, or the first is the family's word.
func coversKind(named, kind string) bool {
	family, _, _ := strings.Cut(kind, " ")
	return named == kind || named == family
}
