#!/bin/sh
# The steps by which a trained model reaches the servers. GitLab, GitHub Actions and Jenkins call them (files beside this one).
#
#   model.sh check DIR NAME GOLDEN [REPORT]   serve DIR in a scratch folder and run its golden set; 1 if too few are right
#   model.sh publish DIR NAME REVISION HUB    publish DIR in a folder hub
#   model.sh approve NAME REVISION            wait until a server asks for approval of REVISION, and approve it
#
# HOTSLOT names the command (default: hotslot), MIN_ACCURACY the share of right answers that `check` wants (default: 1, all). `check` and `publish` run where the model was built; `approve` runs on the
# server's host, whose settings have [updater.models.NAME.policy] mode = "approve".
set -eu
hotslot=${HOTSLOT:-hotslot}

fail() {
    printf 'model.sh: %s\n' "$*" >&2
    exit 1
}

task_of() {
    sed -n 's/.*"task" *: *"\([a-z-]*\)".*/\1/p' "$1/configuration.json" | head -1
}

check() {
    scratch=$(mktemp -d)
    server=
    trap 'if [ -n "$server" ]; then kill "$server" 2>/dev/null; wait "$server" || true; fi; rm -rf "$scratch"' EXIT
    printf '[[models]]\nname = "%s"\ntask = "%s"\n[server]\nport = %s\nmetrics_port = -1\ndrain_delay_seconds = 0\n[updater]\nmetrics_port = -1\n' \
        "$2" "$(task_of "$1")" "${PORT:-50061}" >"$scratch/hotslot.toml"
    export HOTSLOT_CONFIG="$scratch/hotslot.toml" HOTSLOT_STATE_DIR="$scratch/state"
    $hotslot bundle import "$1" --model "$2" --revision candidate
    $hotslot serve >"$scratch/log" 2>&1 &
    server=$!
    tries=0
    until $hotslot healthcheck -addr="127.0.0.1:${PORT:-50061}" >/dev/null 2>&1; do
        tries=$((tries + 1))
        if [ "$tries" -gt 120 ] || ! kill -0 "$server" 2>/dev/null; then
            tail -20 "$scratch/log" >&2
            fail "the model was not served"
        fi
        sleep 0.5
    done
    $hotslot golden check "$3" --model "$2" --address "127.0.0.1:${PORT:-50061}" --junit "${4:-golden.xml}" \
        --min-accuracy "${MIN_ACCURACY:-1}"
}

# The source digest of REVISION while it is held; "committed" once it serves.
held() {
    $hotslot updates status --model "$1" --json | python3 -c '
import json, sys
row = json.load(sys.stdin)["models"][0]
current = row["current"] or {}
if row["committed_revision"] == sys.argv[1]:
    print("committed")
elif current.get("revision") == sys.argv[1] and current.get("stage") == "held":
    print(current["source_digest"])
' "$2"
}

approve() {
    tries=0
    while :; do
        digest=$(held "$1" "$2")
        case $digest in
        committed)
            printf '%s serves %s\n' "$1" "$2"
            return
            ;;
        ?*) $hotslot updates approve "$digest" --model "$1" || true ;; # it may have moved on meanwhile
        esac
        tries=$((tries + 1))
        [ "$tries" -le "${TRIES:-600}" ] || fail "$2 was not installed; \`hotslot updates status\` says why"
        sleep "${PAUSE:-1}"
    done
}

step=${1:-}
[ $# -gt 0 ] && shift
case $step in
check) check "$@" ;;
publish) $hotslot hub add "$1" "$3" --model "$2" --hub "$4" ;;
approve) approve "$@" ;;
*) fail "name a step: check, publish or approve" ;;
esac
