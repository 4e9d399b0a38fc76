#!/usr/bin/env bash
# Make the secrets that the manifests name, in Kubernetes alone; those that are there already stay as they are.
#   semsam-tracking  user and password of MLflow, for the server and for jobs
#   semsam-mlflow    what only MLflow and its database know
#   semsam-s3        AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of this shell, if any, with region and endpoint
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
kubectl apply -f "$here/namespace.yaml"

secret() { # Of a name, from lines `key=value` on standard input, which no other process can see.
    if kubectl -n semsam get secret "$1" >/dev/null 2>&1; then
        cat >/dev/null
        return
    fi
    kubectl -n semsam create secret generic "$1" --from-env-file=/dev/stdin
}
new() { head -c 24 /dev/urandom | base64 | tr -d '+/='; }

printf 'username=admin\npassword=%s\n' "$(new)" | secret semsam-tracking
printf 'database-password=%s\nsession-key=%s\n' "$(new)" "$(new)" | secret semsam-mlflow
if [ -n "${AWS_ACCESS_KEY_ID:-}" ]; then
    env | grep -E '^AWS_(ACCESS_KEY_ID|SECRET_ACCESS_KEY|SESSION_TOKEN|REGION|ENDPOINT_URL)=' | secret semsam-s3
fi
