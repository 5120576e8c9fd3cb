#!/usr/bin/env bash
# A stand-in for a company's identity provider, with openssl alone:
#
#   issuer.sh keys FOLDER                          makes its key, and jwks.json, the public half
#   issuer.sh token FOLDER SUBJECT GROUP SECONDS   prints a token that is good for so long
set -euo pipefail

b64() { openssl base64 -A | tr '+/' '-_' | tr -d '='; }

case "$1" in
keys)
    mkdir -p "$2"
    openssl genpkey -algorithm ed25519 -out "$2/issuer.key"
    public=$(openssl pkey -in "$2/issuer.key" -pubout -outform DER | tail -c 32 | b64)
    echo '{"keys":[{"kty":"OKP","crv":"Ed25519","use":"sig","kid":"2026","x":"'"$public"'"}]}' > "$2/jwks.json"
    ;;
token)
    unsigned=$(mktemp)
    trap 'rm -f "$unsigned"' EXIT
    header=$(printf '{"alg":"EdDSA","kid":"2026"}' | b64)
    claims=$(printf '{"iss":"https://login.example","aud":"weft","sub":"%s","groups":["%s"],"exp":%s}' "$3" "$4" "$(($(date +%s) + $5))" | b64)
    printf '%s.%s' "$header" "$claims" > "$unsigned"
    printf '%s.%s.%s\n' "$header" "$claims" "$(openssl pkeyutl -sign -rawin -inkey "$2/issuer.key" -in "$unsigned" | b64)"
    ;;
esac
