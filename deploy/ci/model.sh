#!/bin/sh
# The steps by which a trained model reaches the servers. GitLab, GitHub Actions and Jenkins call them (files beside this one).
#
#   model.sh check DIR NAME GOLDEN [REPORT]   serve DIR in a scratch folder and run its golden set; 1 if too few are right
#   model.sh publish DIR NAME REVISION HUB    publish DIR in a folder hub, which exists already
#   model.sh approve NAME REVISION            wait until a server asks for approval of REVISION, approve it, wait until it is committed
#
# HOTSLOT names the command (default: hotslot), MIN_ACCURACY the share of right answers that `check` wants (default: 1, all),
# PORT the port of `check` (default: a free one), LIMIT_SECONDS the longest wait of `approve` (default: 7200, more than
# observe.max_seconds and a download). `check` runs where the model was built, `publish` where the hub's folder is, `approve`
# on the server's host, whose settings have [updater.models.NAME.policy] mode = "approve".
#
# `approve` approves what waits for approval alone. An update that is held for its answers, its cost or its labels is left to
# a person (`hotslot updates show`), and so is one in quarantine: exit code 1 at once.
set -eu
hotslot=${HOTSLOT:-hotslot}

fail() {
    printf 'model.sh: %s\n' "$*" >&2
    exit 1
}

task_of() {
    sed -n 's/.*"task" *: *"\([a-z-]*\)".*/\1/p' "$1/configuration.json" | head -1
}

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

check() {
    scratch=$(mktemp -d)
    server=
    trap 'if [ -n "$server" ]; then kill "$server" 2>/dev/null; wait "$server" || true; fi; rm -rf "$scratch"' EXIT
    # A shell that a signal ends runs no EXIT trap: a cancelled job would leave the server behind.
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap 'exit 129' HUP
    # Of this run alone: another job's server on this port is not taken for ours.
    revision=candidate-$$
    address=127.0.0.1:${PORT:-$(free_port)}
    printf '[[models]]\nname = "%s"\ntask = "%s"\n[server]\nport = %s\nmetrics_port = -1\ndrain_delay_seconds = 0\n[updater]\nmetrics_port = -1\n' \
        "$2" "$(task_of "$1")" "${address##*:}" >"$scratch/hotslot.toml"
    export HOTSLOT_CONFIG="$scratch/hotslot.toml" HOTSLOT_STATE_DIR="$scratch/state"
    $hotslot bundle import "$1" --model "$2" --revision "$revision"
    $hotslot serve >"$scratch/log" 2>&1 &
    server=$!
    tries=0
    until $hotslot healthcheck -addr="$address" >/dev/null 2>&1; do
        tries=$((tries + 1))
        if [ "$tries" -gt 120 ] || ! kill -0 "$server" 2>/dev/null; then
            tail -20 "$scratch/log" >&2
            fail "the model was not served"
        fi
        sleep 0.5
    done
    case $($hotslot status --address "$address" --json) in
    *"\"$revision\""*) ;;
    *) fail "another server answers at $address" ;;
    esac
    $hotslot golden check "$3" --model "$2" --address "$address" --junit "${4:-golden.xml}" --min-accuracy "${MIN_ACCURACY:-1}"
}

publish() {
    # A folder that is not mounted here would be made anew, and no server would ever read it.
    [ -d "$4" ] || fail "the hub $4 does not exist here; make the folder, or mount it"
    $hotslot hub add "$1" "$3" --model "$2" --hub "$4"
}

# What the updater does with REVISION: "committed", "approve DIGEST", "wait", "fail WHY", or "unknown".
state_of() {
    $hotslot updates status --model "$1" --json | python3 -c '
import json, sys
try:
    row = json.load(sys.stdin)["models"][0]
except (ValueError, LookupError):  # the updater restarts
    row = None
wanted = sys.argv[1]
current = (row or {}).get("current") or {}
if row is None:
    print("unknown")
elif row["committed_revision"] == wanted:
    print("committed")
elif wanted in [entry["revision"] for entry in row["quarantine"]]:
    print("fail", wanted, "is in quarantine")
elif current.get("revision") != wanted or current["stage"] != "held" or current["reason"] == "DISK_FULL":
    print("wait")
elif current["reason"] == "APPROVAL":
    print("approve", current["source_digest"])
else:
    print("fail", wanted, "is held:", current["reason"] + ":", current["message"])
' "$2"
}

approve() {
    began=$(date +%s)
    unknown=0
    while :; do
        state=$(state_of "$1" "$2")
        if [ "$state" = unknown ]; then unknown=$((unknown + 1)); else unknown=0; fi
        case $state in
        unknown) [ "$unknown" -lt "${TRIES:-120}" ] || fail "\`hotslot updates status\` does not answer about $1" ;;
        committed)
            printf '%s serves %s\n' "$1" "$2"
            return
            ;;
        approve*) $hotslot updates approve "${state#approve }" --model "$1" || true ;; # it may have moved on meanwhile
        fail*) fail "${state#fail }; \`hotslot updates history\` says more" ;;
        esac
        [ $(($(date +%s) - began)) -le "${LIMIT_SECONDS:-7200}" ] || fail "$2 was not installed; \`hotslot updates status\` says why"
        sleep "${PAUSE:-1}"
    done
}

step=${1:-}
[ $# -gt 0 ] && shift
case $step in
check) check "$@" ;;
publish) publish "$@" ;;
approve) approve "$@" ;;
*) fail "name a step: check, publish or approve" ;;
esac
