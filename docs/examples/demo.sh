#!/bin/sh
# Shows what uac is for (make demo): a cluster on this machine, a process that
# publishes a web site, and in the middle of one of its steps kill -9 of the active
# controller, of the agent that runs the step, and of the relay.
#
# Needs Linux, and python3 for the process's web server. Leaves nothing behind.
# Ends with 0 only if everything went as it says.
set -eu
cd "$(dirname "$0")"
PATH=$(cd ../../bin && pwd):$PATH

say() { printf '\n== %s\n' "$*"; }
run() { printf '$ %s\n' "$*"; "$@"; }
fail() { printf '\nFAILED: %s\n' "$*" >&2; exit 1; }
# await CONDITION... tries it for at most ten seconds.
await() {
  left=200
  until "$@"; do
    left=$((left - 1))
    [ $left -gt 0 ] || return 1
    sleep 0.05
  done
}
# value NAME prints the first field of that name in the JSON that it reads.
value() { sed -n "s/.*\"$1\": *\"\{0,1\}\([^\",}]*\).*/\1/p" | head -n 1; }
# find_active sets active and its address, api.
find_active() {
  uac dev status --dir "$dir" | awk '$4 == "ACTIVE" { print $1, $5 }' > "$dir/active"
  read -r active api < "$dir/active"
}
# took_over sets first_write, when the term of the Active began, if that was
# after the kill.
took_over() {
  find_active || return 1
  first_write=$(grep '"term begun"' "$dir/$active/log" | tail -n 1 | value first_write_mono_ns)
  [ "${first_write:-0}" -gt "$killed" ]
}

command -v python3 > /dev/null || fail 'the process of this demo needs python3 (apt-get install python3-minimal)'
dir=$(mktemp -d)
clean_up() {
  code=$?
  uac dev stop --dir "$dir" > /dev/null 2>&1 || true
  case $code in
  0 | 129 | 130 | 143) rm -rf "$dir" ;;
  *) echo "logs and data are in $dir" >&2 ;;
  esac
}
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

say 'A cluster: two controllers, a watch, a relay and two agents, each a process of its own'
run uac dev --dir "$dir" --relays 1 --detach
# shellcheck source=/dev/null
. "$dir/env"
run uac node list

say 'A process that builds, checks and publishes a web site'
# For the proof each step gets one more line: it notes in a ledger that it was
# started, and as which attempt.
ledger=$dir/ledger
sed "s|^    run: .\$|&\n      echo \"\$UAC_STEP \$UAC_ATTEMPT\" >> $ledger|" publish-site.yaml > "$dir/publish-site.yaml"
run uac apply -f "$dir/publish-site.yaml"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
find_active || fail 'no controller is Active'
old=$active
# Who is asked owns the request.
set -- --server "$api" -p version=1.0 -p slow=1.2 -p directory="$dir/site" -p port="$port"
printf '$ uac process run publish-site %s\n' "$*"
request=$(uac process run publish-site "$@" -o json | value id)
await grep -qs '^build' "$ledger" || fail 'the step build never began'
sleep 1
run uac request show "$request"

say "Power cut: kill -9 of $old, which is Active and owns the request"
killed=$(uac dev kill "$old" --dir "$dir" -o json | value killed_mono_ns)
await took_over || fail 'nobody became Active'
took=$(((first_write - killed) / 1000))
printf '%s is Active: its first write was done %d.%03d ms after the kill\n' "$active" $((took / 1000)) $((took % 1000))
[ "$active" != "$old" ] || fail "$old is Active again"
run uac request show "$request"

say 'The agent that runs the step dies, too: the step does not notice'
run uac dev kill a1 --dir "$dir"
run uac dev start a1 --dir "$dir"

say 'And the relay that its links go through: it finds another way'
run uac dev kill r1 --dir "$dir"

say "The request goes on under $active, and the step that was running was not disturbed"
run uac request show "$request" --wait || fail 'the request did not succeed'
owner=$(uac request show "$request" -o json | value owner)
[ "$owner" = "$active" ] || fail "the request is owned by $owner"

say 'Proof: the ledger says how often each step was started, and as which attempt'
run sort "$ledger"
[ "$(sort "$ledger" | tr '\n' ,)" = 'build 1,check 1,clean 1,prepare 1,smoke 1,switch 1,' ] || fail 'not each step ran once'
run cat "$dir/site/current/version.txt"
[ "$(cat "$dir/site/current/version.txt")" = 1.0 ] || fail 'the site was not published'

say "Each step ran once, and nobody lost work when $old, a1 and r1 died. Fail-over: $((took / 1000)) ms."
