"""The live billing activity: what each organization is told of its webhook events, as they are handled.

    feed_candidates -> write -> billing_event_feed -> stream -> GET /api/v1/billing/stream
                         |                              ^
                         +-> broadcast -> Redis -> hub --+   (only "something new"; without it the hub finds it itself)

The table is the truth and everything else is speed, so nothing here ever fails a webhook event.
"""
