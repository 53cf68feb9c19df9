"""Compares the sides of every organization and meter: source, ledger, Stripe.

Runs after confirmation.  It proposes nothing to Stripe and changes no entry.
"""
