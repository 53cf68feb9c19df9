"""A stateful local Stripe for development, the demo and tests; the flows never import it.

    server (HTTP, loopback) -> core -> execution -> resource modules -> records -> journal -> state
        ^                       |          |                                          ^
        +------ delivery -------+          +---- keys, limits, saved answers,          +-- read again at
          (whole, or as the     +---- faults     calls in flight                           every start
           call's fault says)

A resource module looks at the state and decides; it never changes anything itself.
Events are made of those records (`snapshots`), what is due by the clock alone is done before every request (`life`),
and webhooks go the other way: deliveries -> requests -> sender (HTTP) or a callable of a test.
What it decides is a list of records; the core writes them to the journal and only then applies them to the
state, so the state is always what the journal says and a restart forgets nothing.
The core does no I/O but the journal and reads no clock but its own, so it also runs without HTTP under a
virtual clock.
"""
