"""Pure rules: no I/O, no clock, no pandas.

`catalogue` says what is metered, `windows` where usage belongs in time, `identifiers` how an entry is named,
`entries` which state may follow which and what to state next, `differences` how two sides are compared.
Every flow asks these functions; none of them asks anything back.
"""
