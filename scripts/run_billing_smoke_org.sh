#!/bin/sh
# Bills one organization end to end in test mode, and says whether it came to what its usage is worth.
#
#   scripts/run_billing_smoke_org.sh ORGANIZATION_ID [options of billing-pipeline smoke-org]
set -eu
if [ $# -eq 0 ] || [ "${1#-}" != "$1" ]; then
    echo "usage: $0 ORGANIZATION_ID [options of billing-pipeline smoke-org]" >&2
    exit 2
fi
organization_id=$1
shift
cd "$(dirname "$0")/.."
. scripts/find_command.sh
exec "$BILLING_PIPELINE" smoke-org --org-id "$organization_id" --require-enabled --validate-contract --fail-closed "$@"
