package weft

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/validate"
	"github.com/weft-mesh/weft/pkg/manifest"
	"github.com/weft-mesh/weft/pkg/resource"

	"github.com/weft-mesh/weft/tools/proxycmd"
)

func apiKeyCommand() *cobra.Command {
	var (
		namespace string
		groups    []string
		file      string
	)
	cmd := &cobra.Command{Use: "apikey PRINCIPAL", Short: "Make an API key and the Identity that knows its hash", Args: cobra.ExactArgs(1),
		Long: `Writes the key into a new file that only you can read, and prints an Identity
with the key's hash, to be applied. The key itself is nowhere else.`,
		Example: "  weft apikey order-service -n demo --key-file order-service.key | weft apply -f -",
		RunE: func(cmd *cobra.Command, args []string) error {
			if file == "" {
				return errors.New("name the file for the key with --key-file")
			}
			b := make([]byte, 32)
			if _, err := rand.Read(b); err != nil {
				return err
			}
			id := hex.EncodeToString(b[:6])
			key := "weft_" + id + "_" + base64.RawURLEncoding.EncodeToString(b[8:])
			sum := sha256.Sum256([]byte(key))
			r := &configv1.Resource{Metadata: &configv1.Metadata{Namespace: namespace, Name: strings.ReplaceAll(args[0], "@", "-") + "-" + id},
				Spec: &configv1.Resource_Identity{Identity: &configv1.Identity{Method: &configv1.Identity_ApiKeys{ApiKeys: &configv1.ApiKeys{
					Keys: []*configv1.ApiKey{{Id: id, Hash: "sha256:" + hex.EncodeToString(sum[:]), Principal: args[0], Groups: groups}}}}}}}
			r.Name = resource.NameOf(r)
			if err := checkIdentity(r); err != nil {
				return err
			}
			out, err := manifest.YAML(r)
			if err != nil {
				return err
			}
			f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
			if err != nil {
				return fmt.Errorf("--key-file: %w", err)
			}
			if _, err := f.WriteString(key + "\n"); err != nil {
				_ = f.Close()
				return err
			}
			if err := f.Close(); err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(out)
			return err
		}}
	cmd.Flags().StringVarP(&namespace, "namespace", "n", proxycmd.Env("WEFT_NAMESPACE", "demo"), "namespace of the Identity (WEFT_NAMESPACE)")
	cmd.Flags().StringSliceVar(&groups, "group", nil, "a group of the principal; may be repeated")
	cmd.Flags().StringVar(&file, "key-file", "", "the new file for the key")
	return cmd
}

// checkIdentity refuses an Identity that could not be applied.
func checkIdentity(r *configv1.Resource) error {
	v, err := validate.New()
	if err != nil {
		return err
	}
	var problems []error
	for _, p := range v.Alone(r) {
		problems = append(problems, fmt.Errorf("%s: %s", p.Field, p.Message))
	}
	if len(problems) > 0 {
		return fmt.Errorf("the Identity could not be applied, and no key was made:\n%w", errors.Join(problems...))
	}
	return nil
}
