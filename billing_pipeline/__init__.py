"""Bills every usage event exactly once through Stripe meter events, and proves it.

    billable_events -> contract -> usage_windows -> cut -> ledger_entries -> submit -> Stripe
          |                            ^                        |                        |
          v                            +------ deltas <---------+<---- confirm <---------+
    quarantined_events                                          v
                                         reconcile: source = ledger = Stripe, or a named difference

Import rule, held by a test: `cli` and `orchestration` -> flows (`usage`, `reconciliation`)
-> `database`, `stripe_api` -> `domain`.
Flows never import each other, Dagster or the simulator.
`settings` is the only reader of the environment; `errors` is importable from everywhere.
"""
