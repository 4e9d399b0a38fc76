#!/usr/bin/env bash
# Stop Ray when the cloud says that it will take this machine away:  spot_notice.sh aws|gcp
# AWS says so 120 s before, Google 30 s; on a machine that is not spot this waits for ever.
set -uo pipefail
host=${METADATA_HOST:-http://169.254.169.254}

is_taken_away() {
    case $1 in
    aws)
        token=$(curl -sf -m 5 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$host/latest/api/token") &&
            curl -sf -m 5 -o /dev/null -H "X-aws-ec2-metadata-token: $token" \
                "$host/latest/meta-data/spot/instance-action"
        ;;
    gcp)
        [ "$(curl -sf -m 5 -H 'Metadata-Flavor: Google' "$host/computeMetadata/v1/instance/preempted")" = TRUE ]
        ;;
    *)
        echo "$1: neither aws nor gcp" >&2
        exit 2
        ;;
    esac
}

until is_taken_away "${1:-}"; do
    sleep "${POLL:-2}"
done
echo "notice: this machine will be taken away"
systemctl stop ray
