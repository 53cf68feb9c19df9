"""What a Stripe object says in our columns, whichever API version wrote it: one module per kind of object.

Pure.  `webhooks` gives the rows their versions and keeps the greatest of each object.
"""
