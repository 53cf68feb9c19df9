"""Flow 2: what Stripe tells us, stored before it is answered, applied in any order to one state.

In running order: `app` (the HTTP around it), `receive` (is it Stripe's?), `deliveries` (what is stored of it),
`committer` (requests that wait together share a commit), `inbox` (stored once, with its work), `dispatch` (claims what
waits), `handlers` (what each kind of event changes), `feature_cache` (dropped after the commit), `refetch` (asks Stripe
where events cannot decide), `sweep` (finds what was never delivered), `replay` and `rebuild`; `events_list` and
`events_show` are for people, `retention` lets old bodies go.
"""
