#!/bin/sh
# Make this machine a worker of a Ray cluster, for as long as it runs: Ctrl-C or SIGTERM leaves it.
#   infra/hosts/join.sh HEAD:6379 [options of `ray start`]
# The token is that of the head, in RAY_AUTH_TOKEN_PATH (by default /etc/context-encoder/token). The
# checkout lies in the same folder on every machine, with its environment (`make .venv/.ready`), and
# the store is s3:// or a file system that all of them mount.
set -eu
head=${1:?usage: join.sh HEAD:PORT}
shift
cd "$(dirname "$0")/../.."
token=${RAY_AUTH_TOKEN_PATH:-/etc/context-encoder/token}
if [ ! -r "$token" ]; then
  echo "error: $token, the token of the cluster, cannot be read; copy it from the head, mode 0600, or name another file in RAY_AUTH_TOKEN_PATH" >&2
  exit 1
fi
if [ "$(stat -c %a "$token")" != 600 ] && [ "$(stat -c %a "$token")" != 400 ]; then
  echo "error: $token can be read by others; chmod 600 $token" >&2
  exit 1
fi
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$token" RAY_JOB_STOP_WAIT_TIME_S=60
export RAY_worker_niceness=0 RAY_USAGE_STATS_ENABLED=0
export PATH="$PWD/.venv/bin:$PATH" # jobs find their Python by it
# Several addresses: NODE_IP is the one by which the others reach this machine.
exec python -m infra.local.start_ray start --address="$head" --block --disable-usage-stats \
  --dashboard-agent-listen-port=52366 ${NODE_IP:+--node-ip-address="$NODE_IP"} "$@"
