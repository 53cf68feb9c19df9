"""Flow 2: what Stripe tells us, stored before it is answered, applied in any order to one state.

In running order: `signature` and `receive` (is it Stripe's?), `inbox` (stored and committed), `app` (the HTTP around
them), `dispatch` (claims what waits), `handlers` (what each kind of event changes), `refetch` (asks Stripe where events
cannot decide), `sweep` (finds what was never delivered), `replay` and `rebuild`.
"""
