#!/bin/sh
# Runs the hourly usage flush, for machines whose cron drives it instead of Dagster's schedule.
#
#   13 * * * * /path/to/billing_pipeline/scripts/run_billing_hourly.sh >> /var/log/billing_hourly.log 2>&1
#
# Options go on to `billing-pipeline flush-hourly`; a live key needs --live acct_...
# Beside the schedule it does no harm: whichever comes second ends with skipped=true.
set -eu
cd "$(dirname "$0")/.."
. scripts/find_command.sh
exec "$BILLING_PIPELINE" flush-hourly "$@"
