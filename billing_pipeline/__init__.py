"""Bills every usage event exactly once through Stripe meter events, proves it, and follows what Stripe tells.

    billable_events -> contract -> usage_windows -> cut -> ledger_entries -> submit -> Stripe
          |                            ^                        |                        |
          v                            +------ deltas <---------+<---- confirm <---------+
    quarantined_events                                          v
                                         reconcile: source = ledger = Stripe, or a named difference

    POST /webhooks/stripe -> verify -> stripe_events (committed) -> 2xx
                                            |
                                            v
                 dispatch -> subscriptions, invoices, entitlements; sweep and replay what was missed or failed
                                            |
                                            v
                 billing_event_feed -> GET /api/v1/billing/stream, one organization a connection

Import rule, held by a test: `cli` and `orchestration` -> flows (`usage`, `webhooks`, `reconciliation`, `feed`)
-> `database`, `stripe_api` -> `domain`.
Flows never import each other, Dagster or the simulator.
`settings` is the only reader of the environment; `errors` is importable from everywhere.
"""
