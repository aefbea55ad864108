package policy

import (
	"reflect"

	pg "github.com/pganalyze/pg_query_go/v6"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// nodeTypes are the types that a parse tree can hold, by the names of their
// messages.
var nodeTypes = readNodeTypes()

func readNodeTypes() map[string]reflect.Type {
	types := make(map[string]reflect.Type)
	messages := pg.File_pg_query_proto.Messages()
	for i := range messages.Len() {
		message, err := protoregistry.GlobalTypes.FindMessageByName(messages.Get(i).FullName())
		if err != nil {
			panic("policy: parse tree type is not registered: " + err.Error())
		}
		types[string(messages.Get(i).Name())] = reflect.TypeOf(message.Zero().Interface()).Elem()
	}
	return types
}

// childFields tells, for every node type that a parse tree can hold, which of
// its fields hold nodes. It is read off the types themselves, so that no field
// of any node can be forgotten.
var childFields = readChildFields()

func readChildFields() map[reflect.Type][]int {
	fields := make(map[reflect.Type][]int)
	for _, t := range nodeTypes {
		for field := range t.NumField() {
			if f := t.Field(field); f.IsExported() && holdsNodes(f.Type) {
				fields[t] = append(fields[t], field)
			}
		}
	}
	return fields
}

// holdsNodes reports whether a field of type t is a node, a list of nodes, or
// one of several.
func holdsNodes(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Slice:
		return holdsNodes(t.Elem())
	case reflect.Pointer:
		return t.Elem().Kind() == reflect.Struct
	}
	return t.Kind() == reflect.Interface
}

// eachChild calls visit for every node directly below n, in the order of the
// fields. Both n and what visit gets are pointers to a type of the parse tree;
// the Node wrapper between them is taken off.
func eachChild(n any, visit func(any)) {
	v := reflect.ValueOf(n).Elem()
	for _, field := range childFields[v.Type()] {
		eachNode(v.Field(field), visit)
	}
}

func eachNode(v reflect.Value, visit func(any)) {
	switch v.Kind() {
	case reflect.Slice:
		for i := range v.Len() {
			eachNode(v.Index(i), visit)
		}
	case reflect.Interface: // one of several: a pointer to a struct with one field
		if !v.IsNil() {
			if f := v.Elem().Elem().Field(0); f.Kind() == reflect.Pointer {
				eachNode(f, visit)
			}
		}
	case reflect.Pointer:
		if v.IsNil() {
			return
		}
		if node, ok := v.Interface().(*pg.Node); ok {
			if inner := unwrap(node); inner != nil {
				visit(inner)
			}
			return
		}
		visit(v.Interface())
	}
}

// unwrap takes a node out of its wrapper; nil stays nil.
func unwrap(n *pg.Node) any {
	if n == nil || n.Node == nil {
		return nil
	}
	return reflect.ValueOf(n.Node).Elem().Field(0).Interface()
}
