"""Flow 1, in running order: contract -> periods -> aggregate -> cut -> gate -> submit -> confirm.

`import_events` fills the source from a file; `flush` runs the stages once, in order.
Each stage is one function that opens its own transactions, takes its clock and limits as arguments, and
returns a frozen report of what it did.  No network call happens inside a transaction.
"""
