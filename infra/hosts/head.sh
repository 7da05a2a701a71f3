#!/bin/sh
# Make this machine the head of a Ray cluster of several machines, until Ctrl-C or SIGTERM.
#   infra/hosts/head.sh [options of `ray start`]
# The network between the machines has to be closed: Ray runs code for everybody who has the token,
# and the token is not encryption. The dashboard is on loopback: submit from here, or through ssh -L.
set -eu
cd "$(dirname "$0")/../.."
token=${RAY_AUTH_TOKEN_PATH:-/etc/context-encoder/token}
if [ ! -e "$token" ]; then
  (umask 077 && mkdir -p "$(dirname "$token")" && od -An -tx1 -N32 /dev/urandom | tr -d ' \n' > "$token")
  echo "made $token; copy it to every worker, mode 0600"
fi
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$token" RAY_JOB_STOP_WAIT_TIME_S=60
export RAY_worker_niceness=0 RAY_USAGE_STATS_ENABLED=0
export PATH="$PWD/.venv/bin:$PATH" # jobs find their Python by it
exec python -m infra.local.start_ray start --head --block --disable-usage-stats --port="${RAY_PORT:-6379}" \
  --dashboard-host=127.0.0.1 --dashboard-port="${DASHBOARD_PORT:-8265}" \
  --dashboard-agent-listen-port=52366 ${NODE_IP:+--node-ip-address="$NODE_IP"} "$@"
