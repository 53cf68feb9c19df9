# Read by the scripts beside it: BILLING_PIPELINE is the command of this checkout's environment, or the one on the path.
if [ -x .venv/bin/billing-pipeline ]; then
    BILLING_PIPELINE=.venv/bin/billing-pipeline
elif command -v billing-pipeline > /dev/null; then
    BILLING_PIPELINE=billing-pipeline
else
    echo "billing-pipeline is not installed; run make up once in $(pwd), or activate its environment" >&2
    exit 1
fi
