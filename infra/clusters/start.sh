#!/usr/bin/env bash
# Start Ray on this machine:  start.sh aws|gcp <seconds to drain> <arguments of ray start>
# As a systemd unit: it outlives the ssh session that starts it, and a machine that is shut down sends it SIGTERM, at
# which `ray start --block` announces to the cluster that this node goes, and waits so long for its work to move.
set -euo pipefail
cloud=$1 drain=$2
shift 2
export RAY_AUTH_MODE=token RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=$drain PATH="$HOME/venv/bin:$PATH"

# What the cluster launcher has set in this shell goes along, and where S3 is; secrets stay in their files.
umask 077
{
    export -p | grep -E '^declare -x (RAY_[A-Za-z_]+|AWS_[A-Z_]*(URL|REGION|CALCULATION|VALIDATION)|PATH|HOME)=' |
        grep -v ' RAY_AUTH_TOKEN='
    printf 'exec ray start --block'
    printf ' %q' "$@"
    echo
} > ~/start-ray
unit() { # Of a name, that runs a command as this user.
    sudo systemctl stop "$1" 2>/dev/null || true
    sudo systemctl reset-failed "$1" 2>/dev/null || true
    sudo systemd-run --quiet --unit="$1" "${@:2}"
}
# KillMode: only `ray start` gets SIGTERM, for its processes are to work on while the node drains.
unit ray --uid="$(id -u)" --gid="$(id -g)" --property=KillMode=mixed --property=TimeoutStopSec=$((drain + 20)) \
    --property=LimitNOFILE=65536 /bin/bash "$HOME/start-ray"
unit spot-notice /bin/bash "$(cd "$(dirname "$0")" && pwd)/spot_notice.sh" "$cloud"

for _ in $(seq 60); do
    ray health-check --address "${RAY_HEAD_IP:-127.0.0.1}:6379" >/dev/null 2>&1 && exit 0
    sleep 2
done
echo "Ray does not answer; see: journalctl -u ray" >&2
exit 1
