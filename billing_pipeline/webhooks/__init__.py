"""Flow 2: what Stripe tells us, stored before it is answered, applied in any order to one state.

In running order: `app` (the HTTP around it), `receive` (is it Stripe's?), `deliveries` (what is stored of it),
`committer` (requests that wait together share a commit), `inbox` (stored once, with its work), `dispatch` (handles what
waits, by `claims`), `handlers` (what each kind of event shows), `apply` (what is written), `refetch` (asks Stripe where
events cannot decide).
"""
