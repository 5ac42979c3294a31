#!/usr/bin/env bash
# Stops the Ray head that up.sh started, and no other: `ray stop` matches by process name and would take every Ray on the machine.
set -euo pipefail

state=${UNFREEZE_CLUSTER_DIR:-$HOME/.unfreeze-cluster}
if [[ ! -f $state/pid ]]; then
  echo "down.sh: nothing was started here ($state)" >&2
  exit 0
fi
read -r pid started <"$state/pid"
temp=$(<"$state/temp")

# Process ids of $1 and everything below it. Jobs' drivers have sessions of their own, so a process group would miss them.
tree() {
  ps -A -o pid=,ppid= | awk -v root="$1" '
    { parent[$1] = $2 }
    END { for (p in parent) { for (q = p; q > 1 && q != root; q = parent[q]); if (q == root) print p } }'
}
# Those of the ids that still run. In a container whose first process does not reap, the dead stay as zombies, and `kill -0` finds them.
alive() {
  local IFS=,
  ps -o pid=,stat= -p "$*" | awk '$2 !~ /^Z/ { print $1 }'
}

if [[ -n $started && "$(ps -o lstart= -p "$pid" 2>/dev/null)" == "$started" ]]; then
  mapfile -t members < <(tree "$pid")
  kill -TERM "$pid"  # `ray start --block` stops its raylet, workers and GCS in the order they need
  for _ in {1..30}; do
    mapfile -t left < <(alive "${members[@]}")
    ((${#left[@]})) || break
    sleep 1
  done
  if ((${#left[@]})); then
    echo "down.sh: killing what did not stop within 30 s: ${left[*]}" >&2
    kill -KILL "${left[@]}" 2>/dev/null || true
  fi
fi
[[ $temp == /tmp/unfreeze-ray.* ]] && rm -rf "$temp"
rm -f "$state/pid" "$state/temp"
echo "down.sh: stopped; the last output is in $state/log" >&2
