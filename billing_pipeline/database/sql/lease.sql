-- name: acquire_lease
-- One statement, so that two flushes cannot both find the lease free.  The fence rises with every change of holder.
INSERT INTO flush_leases AS l (lock_key, holder, fence, expires_at)
VALUES (%(lock_key)s, %(holder)s, 1, %(expires_at)s)
    ON CONFLICT (lock_key) DO UPDATE
   SET fence = CASE WHEN l.holder = excluded.holder AND l.expires_at > %(now)s THEN l.fence ELSE l.fence + 1 END,
       holder = excluded.holder, expires_at = excluded.expires_at
 WHERE l.expires_at <= %(now)s OR l.holder = excluded.holder
RETURNING lock_key, holder, fence, expires_at;

-- name: renew_lease
UPDATE flush_leases SET expires_at = %(expires_at)s
 WHERE lock_key = %(lock_key)s AND fence = %(fence)s AND expires_at > %(now)s
RETURNING lock_key, holder, fence, expires_at;

-- name: read_lease
SELECT lock_key, holder, fence, expires_at FROM flush_leases WHERE lock_key = %(lock_key)s;

-- name: release_lease
-- The row stays: its fence must go on rising.
UPDATE flush_leases SET expires_at = 'epoch' WHERE lock_key = %(lock_key)s AND holder = %(holder)s;
