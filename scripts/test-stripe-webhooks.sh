#!/bin/sh
# Delivers a signed webhook twice, and says whether it was processed, and the second time recognized.
#
#   scripts/test-stripe-webhooks.sh                                    an intake and a database of its own, gone afterwards
#   scripts/test-stripe-webhooks.sh http://127.0.0.1:8000/webhooks/stripe
#
# With an address, the intake that runs there is tested: in test mode only, with STRIPE_WEBHOOK_SECRET and DATABASE_URL
# from the environment, and one made-up customer stays in stripe_customers.  Needs neither Stripe nor its CLI.
set -eu
cd "$(dirname "$0")/.."
. scripts/find_command.sh
case $BILLING_PIPELINE in .venv/*) BILLING_PIPELINE=$PWD/$BILLING_PIPELINE ;; esac

work=$(mktemp -d)
serve_pid=
clean_up() {
    code=$?
    trap - EXIT
    if [ -n "$serve_pid" ]; then
        kill "$serve_pid" 2> /dev/null || true
        wait "$serve_pid" 2> /dev/null || true
        "$BILLING_PIPELINE" down > /dev/null 2>&1 || true
    fi
    rm -rf "$work"
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

fail() {
    echo "FAILED: $1" >&2
    [ -n "$serve_pid" ] && tail -5 "$work/serve.log" >&2
    exit 1
}

# As Stripe signs; standard library only.  Prints the answer's status and its document.
cat > "$work/deliver.py" << 'PYTHON'
import hashlib, hmac, json, os, sys, time, urllib.error, urllib.request

url, event_id = sys.argv[1:]
now = int(time.time())
customer = {"id": event_id.replace("evt_", "cus_"), "object": "customer", "created": now, "livemode": False}
event = {"id": event_id, "object": "event", "api_version": "2026-10-28.endive", "created": now, "livemode": False,
         "type": "customer.created", "data": {"object": customer}}
body = json.dumps(event).encode()
secret = os.environ["STRIPE_WEBHOOK_SECRET"].split(",")[0].strip()
digest = hmac.new(secret.encode(), b"%d.%b" % (now, body), hashlib.sha256).hexdigest()
request = urllib.request.Request(url, body, {"Stripe-Signature": f"t={now},v1={digest}"})
try:
    with urllib.request.urlopen(request, timeout=30) as answer:
        print(answer.status, answer.read().decode())
except urllib.error.HTTPError as refusal:
    print(refusal.code, refusal.read().decode())
except OSError as fault:
    print("no answer:", getattr(fault, "reason", fault))
PYTHON

outcome() {
    "$BILLING_PIPELINE" events show "$event_id" --json |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["processing_outcome"])'
}

if command -v stripe > /dev/null; then
    echo "Stripe CLI found"
else
    echo "Stripe CLI not found, and not needed: the webhook is signed here"
fi

if [ $# -gt 0 ]; then
    url=$1
    [ -n "${STRIPE_WEBHOOK_SECRET:-}" ] || fail "STRIPE_WEBHOOK_SECRET is not set; set the intake's"
else
    # In a folder without .env, so that nothing of yours is read or written.
    cd "$work"
    unset DATABASE_URL DAGSTER_DATABASE_URL STRIPE_SECRET_KEY STRIPE_API_BASE REDIS_URL
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    STRIPE_WEBHOOK_SECRET=whsec_$(python3 -c 'import secrets; print(secrets.token_hex(24))')
    export STRIPE_WEBHOOK_SECRET BILLING_STATE_DIR="$work/state" BILLING_INTAKE_PORT="$port"
    "$BILLING_PIPELINE" serve > "$work/serve.log" 2>&1 &
    serve_pid=$!
    url=http://127.0.0.1:$port/webhooks/stripe
fi

ready=${url%/webhooks/stripe}/readyz
tries=0
until python3 -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)' "$ready" 2> /dev/null; do
    tries=$((tries + 1))
    [ $tries -lt 120 ] || fail "the intake is not ready: $ready"
    [ -z "$serve_pid" ] || kill -0 "$serve_pid" 2> /dev/null || fail "the intake has ended"
    sleep 0.5
done
echo "Backend is running"

event_id=evt_script_$(python3 -c 'import secrets; print(secrets.token_hex(12))')
first=$(python3 "$work/deliver.py" "$url" "$event_id")
case $first in
    202*'"accepted"'*) ;;
    *) fail "the webhook was not accepted: $first" ;;
esac
tries=0
while [ "$(outcome)" = received ] && [ $tries -lt 5 ]; do
    tries=$((tries + 1))
    sleep 1
done
if [ "$(outcome)" = received ]; then
    echo "No dispatcher has taken it; it is handled here"
    "$BILLING_PIPELINE" events replay --event-id "$event_id" --yes > /dev/null 2>&1 || true
fi
[ "$(outcome)" = processed ] || fail "the webhook is $(outcome), see billing-pipeline events show $event_id"
echo "Webhook processed successfully"

second=$(python3 "$work/deliver.py" "$url" "$event_id")
case $second in
    200*'"already_processed"'*) ;;
    *) fail "the same webhook again was answered $second" ;;
esac
[ "$(outcome)" = processed ] || fail "the repetition made the webhook $(outcome)"
echo "Idempotency working"
