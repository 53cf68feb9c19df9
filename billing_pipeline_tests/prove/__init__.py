"""The proof: the product's own flush against a simulated Stripe, for thousands of simulated hours, under every fault.

    chances ──► plan ──► world ──► judge ──► report
       what may happen    one hour at a time    plain sums, from the simulator's journal and the source's rows alone

Run by `make prove`, and in small by the test suite.  Nothing here is part of the installed package.
"""
