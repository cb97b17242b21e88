#!/usr/bin/env bash
# Runs the conformance checks: `make conformance`, or conformance/run.sh [GROUP…]. See README.md beside this file.
#
# Exit codes: 0 all passed, 1 something failed, 75 the package index does not answer (nothing was checked).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
here=conformance
venv=${CONFORMANCE_VENV:-.venv-conformance}
natscli=v0.5.0 # v0.5.1 must not be used

work=$(mktemp -d "${TMPDIR:-/tmp}/conformance.XXXXXX")
children=()
cleanup() {
	for pid in "${children[@]}"; do
		kill "$pid" 2>/dev/null && wait "$pid" || true # it has processes of its own to end
	done
	rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

say() { printf 'CONFORMANCE: %s\n' "$*" >&2; }

find_python() {
	local candidate
	for candidate in ${PYTHON:-} python3.12 python3.13 python3.14 python3.11 python3; do
		if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
			command -v "$candidate"
			return
		fi
	done
	say "no Python 3.11 or newer with the venv module is on the path; set PYTHON to one"
	return 1
}

# An index that is out of reach is not a failed check: it has an exit code of its own.
install() {
	if "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --retries 2 --timeout 20 "$@" >"$work/pip.log" 2>&1; then
		return
	fi
	local unreachable='NewConnectionError|ConnectTimeout|ReadTimeout|ProxyError|SSLError|Max retries|Temporary failure|Connection (refused|reset|aborted)|HTTP error 5'
	if grep -qE "$unreachable" "$work/pip.log"; then
		printf 'CONFORMANCE: PyPI does not answer: %s\n' "$(grep -E "$unreachable" "$work/pip.log" | tail -1)"
		exit 75
	fi
	cat "$work/pip.log" >&2
	say "pip install failed"
	exit 1
}

make_venv() {
	local python stamp
	python=$(find_python)
	stamp=$(cat "$here/requirements.txt" "$here/overlays.txt" | cksum)" $("$python" --version)"
	[[ -f $venv/stamp && $(<"$venv/stamp") == "$stamp" ]] && return
	say "installing into $venv with $("$python" --version)"
	rm -rf "$venv"
	"$python" -m venv "$venv"
	install --requirement "$here/requirements.txt"
	# hatchery-core asks for Python 3.12 and for torch. Its stub worker, which is all that is used here, needs neither.
	grep -vE '^(#|$)' "$here/overlays.txt" | while read -r package; do
		install --no-deps --ignore-requires-python --target "$venv/overlays/${package/==/-}" "$package"
	done
	printf '%s' "$stamp" >"$venv/stamp"
}

make_nats() { # a CLI that was built before is used again
	local to=$venv/nats-$natscli
	[[ -x $to/nats ]] && return
	GOBIN=$PWD/$to GOFLAGS= go install "github.com/nats-io/natscli/nats@$natscli"
}

make_venv
if [[ $# == 0 || " $* " == *" examples "* ]]; then
	make_nats >"$work/nats.log" 2>&1 &
	children+=("$!")
fi
mkdir "$work/bin"
go build -o "$work/bin/bridge" ./cmd/bridge
if ((${#children[@]})); then
	if ! wait "${children[0]}"; then
		cat "$work/nats.log" >&2
		say "the nats command line $natscli cannot be built"
		exit 1
	fi
	children=()
	ln -s "$PWD/$venv/nats-$natscli/nats" "$work/bin/nats"
fi

# In the background, since bash looks at signals only between commands and while it waits.
PYTHONDONTWRITEBYTECODE=1 "$venv/bin/python" "$here/check.py" --bridge "$work/bin/bridge" --overlays "$venv/overlays" "$@" &
children=("$!")
wait "$!"
