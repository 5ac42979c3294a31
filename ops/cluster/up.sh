#!/usr/bin/env bash
# A local Ray head with token authentication, for `ray job submit` and cluster=existing; down.sh stops it.
#   eval "$(ops/cluster/up.sh)"          starts it, and sets what clients need in this shell
#   ops/cluster/up.sh --num-cpus 2       arguments go to `ray start`
# Overridable: UNFREEZE_RAY_PORT, UNFREEZE_DASHBOARD_PORT, UNFREEZE_AGENT_PORT, UNFREEZE_CLIENT_PORT, UNFREEZE_CLUSTER_DIR, RAY_AUTH_TOKEN_PATH.
set -euo pipefail

die() { echo "up.sh: $*" >&2; exit 1; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
ray=ray
if [[ -x $root/.venv/bin/ray ]]; then
  ray=$root/.venv/bin/ray
  export PATH="$root/.venv/bin:$PATH"  # a submitted job's `python` is found through the head's PATH
fi
command -v "$ray" >/dev/null || die "no ray: run make venv"

# Not Ray's own 6379, 52365 and 10001: another cluster on this machine keeps its ports.
port=${UNFREEZE_RAY_PORT:-26379}
dashboard=${UNFREEZE_DASHBOARD_PORT:-8265}
agent=${UNFREEZE_AGENT_PORT:-26365}
client=${UNFREEZE_CLIENT_PORT:-26001}
state=${UNFREEZE_CLUSTER_DIR:-$HOME/.unfreeze-cluster}
token=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}

umask 077
mkdir -p "$state" "$(dirname "$token")"
if [[ -f $state/pid ]]; then
  read -r pid started <"$state/pid"
  # The start time too: a number alone may by now be somebody else's process.
  [[ -z $started || "$(ps -o lstart= -p "$pid" 2>/dev/null)" != "$started" ]] || die "already running as process $pid; ops/cluster/down.sh stops it"
fi
# Ray would quietly take the next free dashboard port, and the lines printed below would name another cluster's.
for taken in "$port" "$dashboard"; do
  ! (exec 3<>"/dev/tcp/127.0.0.1/$taken") 2>/dev/null || die "port $taken is in use; choose another with UNFREEZE_RAY_PORT or UNFREEZE_DASHBOARD_PORT"
done

# `ray get-auth-token --generate` writes the same 256 bits, but to ~/.ray only and readable by everyone.
[[ -s $token ]] || od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$token"
chmod 600 "$token"
unset RAY_AUTH_TOKEN RAY_ADDRESS  # either would win over the file and the port chosen here
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token
# One node has nowhere to drain to: by default down.sh would wait 30 s whenever a job runs.
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0

# Short on purpose: Ray's socket paths below it must stay under 107 bytes. Its own, so that `ray` elsewhere with address="auto" misses it.
temp=$(mktemp -d /tmp/unfreeze-ray.XXXXXX)
# Only the dashboard can be kept on loopback: Ray turns --node-ip-address 127.0.0.1 into the machine's own address. The token is the guard.
setsid "$ray" start --head --block --disable-usage-stats --temp-dir "$temp" \
  --port "$port" --ray-client-server-port "$client" \
  --dashboard-host 127.0.0.1 --dashboard-port "$dashboard" --dashboard-agent-listen-port "$agent" \
  "$@" >"$state/log" 2>&1 </dev/null &
pid=$!
echo "$pid $(ps -o lstart= -p "$pid")" >"$state/pid"
echo "$temp" >"$state/temp"

for _ in {1..90}; do
  if grep -q 'Ray runtime started' "$state/log"; then up=yes; break; fi
  kill -0 "$pid" 2>/dev/null || break
  sleep 1
done
if [[ ${up:-} != yes ]] || ! RAY_ADDRESS=127.0.0.1:$port timeout 30 "$ray" status >/dev/null 2>>"$state/log"; then
  tail -n 20 "$state/log" >&2
  "$root/ops/cluster/down.sh" >&2 || true
  die "Ray did not start; its output is above"
fi

cat <<EOF
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH=$token
export RAY_ADDRESS=127.0.0.1:$port
export RAY_API_SERVER_ADDRESS=http://127.0.0.1:$dashboard
# Then, in $root (a job runs in a copy of it, so results need an absolute place):
#   $ray job submit --working-dir . -- python sweeps/vit_components.py experiment=demo cluster=existing storage=$root/runs
EOF
