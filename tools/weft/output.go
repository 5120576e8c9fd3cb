package weft

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// outputFlag chooses between text, JSON and YAML.
func outputFlag(cmd *cobra.Command, to *string) {
	cmd.Flags().StringVarP(to, "output", "o", "text", "text, json or yaml")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
}

// checkOutput refuses an output format that there is not, before anything is done.
func checkOutput(output string) error {
	if output != "text" && output != "json" && output != "yaml" {
		return fmt.Errorf("--output: %q is not text, json or yaml", output)
	}
	return nil
}

// writeMessage writes an answer as JSON or YAML.
func writeMessage(w io.Writer, m proto.Message, output string) error {
	b, err := protojson.MarshalOptions{Multiline: true, UseProtoNames: true, EmitDefaultValues: true}.Marshal(m)
	if err != nil {
		return err
	}
	return writeJSON(w, b, output)
}

// writeJSON writes JSON as it is, or as YAML, one document after the other.
func writeJSON(w io.Writer, b []byte, output string) error {
	if output == "yaml" {
		n, err := yamlOf(b)
		if err != nil {
			return err
		}
		if b, err = yaml.Marshal(n); err != nil {
			return err
		}
		b = append([]byte("---\n"), b...)
	}
	_, err := fmt.Fprintf(w, "%s\n", strings.TrimRight(string(b), "\n"))
	return err
}

// yamlOf is JSON as YAML, with its order and its numbers as they are. A parser of YAML would
// not take all of it: keys that are there twice, "<<", pairs of surrogates.
func yamlOf(b []byte) (*yaml.Node, error) {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	return yamlNext(dec)
}

// yamlNext is the next value of dec; nil is the end of a list or an object.
func yamlNext(dec *json.Decoder) (*yaml.Node, error) {
	token, err := dec.Token()
	if err != nil {
		return nil, err
	}
	switch v := token.(type) {
	case json.Delim:
		n := &yaml.Node{Kind: yaml.SequenceNode}
		switch v {
		case '}', ']':
			return nil, nil
		case '{':
			n.Kind = yaml.MappingNode
		}
		for {
			item, err := yamlNext(dec)
			if item == nil || err != nil {
				return n, err
			}
			n.Content = append(n.Content, item)
		}
	case string:
		n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: v}
		if notText.MatchString(v) {
			n.Style = yaml.DoubleQuotedStyle
		}
		return n, nil
	case nil:
		return &yaml.Node{Kind: yaml.ScalarNode, Value: "null"}, nil
	}
	return &yaml.Node{Kind: yaml.ScalarNode, Value: fmt.Sprint(token)}, nil
}

// notText are texts that readers take for something else and yaml.Marshal leaves as they are: the
// key that merges, and what YAML 1.1 has beside 1.2.
var notText = regexp.MustCompile(`^(?i:<<|y|n|yes|no|on|off|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)$`)
