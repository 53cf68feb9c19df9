"""Flow 2: what Stripe tells us, stored before it is answered, applied in any order to one state.

In running order: `http_protocol` and `app` (the HTTP around it), `body` and `receive` (is it Stripe's?, else
`refusal_log`), `deliveries` (what is stored of it),
`committer` (requests that wait together share a commit), `inbox` (stored once, with its work), `worker` and `dispatch`
(handle what waits, by `claims`), `handlers` (what each kind of event shows), `apply` (what is written), `feature_cache`
(dropped after the commit), `refetch` (asks Stripe where events cannot decide), `replay`.  `events_list` and
`events_show` are for people, `access` for the web app, by `questions`; `retention` lets old bodies go.
"""
