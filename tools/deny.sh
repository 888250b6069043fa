#!/usr/bin/env bash
# Licences, sources and bans of every dependency always; known vulnerabilities where the
# advisory database can be fetched. The last line says which, for the summary of `make test`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
database="https://github.com/RustSec/advisory-db"

cargo deny --log-level error check bans licenses sources >&2
if GIT_TERMINAL_PROMPT=0 timeout 20 git ls-remote --quiet "$database" HEAD >/dev/null 2>&1; then
    cargo deny --log-level error check advisories >&2
    echo "cargo deny (bans, licences, sources, advisories)"
else
    echo "cargo deny (bans, licences, sources; NOT advisories: $database is not reachable from here)"
fi
