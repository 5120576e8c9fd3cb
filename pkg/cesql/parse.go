package cesql

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/antlr/antlr4/runtime/Go/antlr"
	"github.com/cloudevents/sdk-go/sql/v2/gen"

	"github.com/weft-mesh/weft/pkg/event"
)

// parse turns src into a tree, and tells which attributes that looks at.
func parse(src string) (root node, attributes []string, err error) {
	switch {
	case src == "":
		return nil, nil, fmt.Errorf("must not be empty")
	case len(src) > MaxLength:
		return nil, nil, fmt.Errorf("has %d bytes, an expression may have %d", len(src), MaxLength)
	case !utf8.ValidString(src):
		return nil, nil, fmt.Errorf("is not valid UTF-8")
	}
	errs := firstError{src: src}
	if err := bounded(src, &errs); err != nil {
		return nil, nil, err
	}
	lexer := newLexer(src, &errs)
	p := gen.NewCESQLParserParser(antlr.NewCommonTokenStream(lexer, antlr.TokenDefaultChannel))
	p.RemoveErrorListeners()
	p.AddErrorListener(&errs)
	tree := p.Cesql()
	if errs.err != nil {
		return nil, nil, errs.err
	}
	b := &builder{}
	root = b.build(tree.(*gen.CesqlContext).Expression(), 1)
	return root, b.attributes, b.err
}

func newLexer(src string, errs *firstError) *gen.CESQLParserLexer {
	lexer := gen.NewCESQLParserLexer(upperCase{antlr.NewInputStream(src)})
	lexer.RemoveErrorListeners()
	lexer.AddErrorListener(errs)
	return lexer
}

// upperCase is what the lexer looks at: keywords are of any case. The text of
// tokens stays as it was written.
type upperCase struct{ antlr.CharStream }

// LA is the character at an offset; below 0 at the end.
func (u upperCase) LA(offset int) int {
	c := u.CharStream.LA(offset)
	if c < 0 {
		return c
	}
	return int(unicode.ToUpper(rune(c)))
}

// bounded counts tokens and parentheses before anything is parsed: what nests deep
// is dear to parse.
func bounded(src string, errs *firstError) error {
	lexer := newLexer(src, errs)
	depth, run := 0, 0
	for n := 0; ; n++ {
		if n > MaxTokens {
			return fmt.Errorf("has more than %d names, literals and operators", MaxTokens)
		}
		switch t := lexer.NextToken(); t.GetTokenType() {
		case antlr.TokenEOF:
			if errs.err != nil {
				return errs.err
			}
			return nil
		case gen.CESQLParserLexerLR_BRACKET:
			depth++
			run = 0
		case gen.CESQLParserLexerRR_BRACKET:
			depth--
			run = 0
		case gen.CESQLParserLexerNOT, gen.CESQLParserLexerMINUS:
			run++
		default:
			run = 0
		}
		if max(depth, run) > MaxDepth {
			return errDepth
		}
	}
}

var errDepth = fmt.Errorf("may nest %d deep", MaxDepth)

// firstError keeps the first error of lexer and parser.
type firstError struct {
	antlr.DefaultErrorListener
	src string
	err error
}

func (f *firstError) SyntaxError(_ antlr.Recognizer, _ any, line, column int, msg string, _ antlr.RecognitionException) {
	if f.err != nil {
		return
	}
	if f.ofData(line, column) {
		msg += "; expressions see the attributes of an event, not its data"
	}
	f.err = &syntaxError{line, column, msg}
}

// ofData tells whether a place is behind "data", as in "data.amount".
func (f *firstError) ofData(line, column int) bool {
	rest := f.src
	for range line - 1 {
		_, rest, _ = strings.Cut(rest, "\n")
	}
	text := []rune(rest)
	return column < len(text) && text[column] == '.' && strings.HasSuffix(strings.ToLower(string(text[:column])), "data")
}

// builder turns what the SDK's grammar parsed into nodes. The tree is without
// errors, so every part that the grammar requires is there.
type builder struct {
	err        error
	attributes []string // that are looked at, each once
}

func (b *builder) attribute(name string) {
	if !slices.Contains(b.attributes, name) {
		b.attributes = append(b.attributes, name)
	}
}

func (b *builder) fail(format string, args ...any) node {
	if b.err == nil {
		b.err = fmt.Errorf(format, args...)
	}
	return literal{}
}

// build makes the node of t. depth counts what nests in earnest; chains of one
// operator ("a AND b AND c") are as long as the tokens allow.
func (b *builder) build(t antlr.Tree, depth int) node {
	if depth > MaxTokens {
		return b.fail("may nest %d deep", MaxDepth)
	}
	next := func(t antlr.Tree) node { return b.build(t, depth+1) }
	switch t := t.(type) {
	case *gen.SubExpressionContext:
		return next(t.Expression())
	case *gen.AtomExpressionContext:
		return b.atom(t.Atom())
	case *gen.UnaryLogicExpressionContext:
		return not{next(t.Expression())}
	case *gen.UnaryNumericExpressionContext:
		return negate{next(t.Expression())}
	case *gen.ExistsExpressionContext:
		name := strings.ToLower(t.Identifier().GetText())
		b.attribute(name)
		return exists{name}
	case *gen.LikeExpressionContext:
		var n node = like{next(t.Expression()), compileLike(unquote(t.StringLiteral().GetText()))}
		if t.NOT() != nil {
			n = not{n}
		}
		return n
	case *gen.InExpressionContext:
		in := in{left: next(t.Expression())}
		for _, e := range t.SetExpression().(*gen.SetExpressionContext).AllExpression() {
			in.set = append(in.set, next(e))
		}
		if t.NOT() != nil {
			return not{in}
		}
		return in
	case *gen.FunctionInvocationExpressionContext:
		var args []node
		for _, e := range t.FunctionParameterList().(*gen.FunctionParameterListContext).AllExpression() {
			args = append(args, next(e))
		}
		name := strings.ToUpper(t.FunctionIdentifier().GetText())
		f := functionOf(name, len(args))
		if f == nil {
			return b.fail("%w: %s with %d arguments", errMissingFunction, name, len(args))
		}
		return call{f, args}
	case *gen.BinaryMultiplicativeExpressionContext:
		op := opDivide
		if t.STAR() != nil {
			op = opMultiply
		} else if t.MODULE() != nil {
			op = opModulo
		}
		return arithmetic{op, next(t.Expression(0)), next(t.Expression(1))}
	case *gen.BinaryAdditiveExpressionContext:
		op := opSubtract
		if t.PLUS() != nil {
			op = opAdd
		}
		return arithmetic{op, next(t.Expression(0)), next(t.Expression(1))}
	case *gen.BinaryComparisonExpressionContext:
		l, r := next(t.Expression(0)), next(t.Expression(1))
		switch {
		case t.EQUAL() != nil:
			return equal{l, r, true}
		case t.LESS() != nil:
			return order{opLess, l, r}
		case t.LESS_OR_EQUAL() != nil:
			return order{opLessOrEqual, l, r}
		case t.GREATER() != nil:
			return order{opGreater, l, r}
		case t.GREATER_OR_EQUAL() != nil:
			return order{opGreaterOrEqual, l, r}
		}
		return equal{l, r, false}
	case *gen.BinaryLogicExpressionContext:
		op := opXor
		if t.AND() != nil {
			op = opAnd
		} else if t.OR() != nil {
			op = opOr
		}
		return logic{op, next(t.Expression(0)), next(t.Expression(1))}
	}
	return b.fail("has an expression that this version does not know")
}

func (b *builder) atom(t antlr.Tree) node {
	switch t := t.(type) {
	case *gen.BooleanAtomContext:
		return literal{boolean(t.BooleanLiteral().(*gen.BooleanLiteralContext).TRUE() != nil)}
	case *gen.IntegerAtomContext:
		i, err := strconv.ParseInt(t.GetText(), 10, 32)
		if err != nil {
			return b.fail("%s is not an Integer of 32 bits", t.GetText())
		}
		return literal{integer(int32(i))}
	case *gen.StringAtomContext:
		return literal{text(unquote(t.GetText()))}
	case *gen.IdentifierAtomContext:
		name := strings.ToLower(t.GetText())
		if !event.ValidName(name) {
			return b.fail("%q is not the name of an attribute", name)
		}
		b.attribute(name)
		return attribute{name, fmt.Errorf("%w: %s", ErrMissingAttribute, name)}
	}
	return b.fail("has a literal that this version does not know")
}

// unquote is what a literal stands for: quotes of its own kind are escaped in it.
func unquote(s string) string {
	quote := s[:1]
	return strings.ReplaceAll(s[1:len(s)-1], `\`+quote, quote)
}
