"""The only `import stripe`: the client, meter events out, summaries in, and the catalogue's objects at Stripe.

Flows call these functions with plain values and get plain values back; no SDK object or exception leaves here.
The SDK's retries and telemetry are off: our attempts, written ahead in the ledger, are the only retries.
"""
