-- name: refresh_customer_organizations
-- Whose these customers are now; the organizations that this may change are those before and after.  A customer that no
-- object names any more is nobody's.
WITH known AS (
    SELECT stripe_customer_id, organization_id
      FROM known_customer_organizations
     WHERE stripe_customer_id = ANY (%(customers)s)
), before AS (
    SELECT stripe_customer_id, organization_id FROM customer_organizations WHERE stripe_customer_id = ANY (%(customers)s)
), written AS (
    INSERT INTO customer_organizations AS kept (stripe_customer_id, organization_id)
    SELECT stripe_customer_id, organization_id FROM known WHERE organization_id IS NOT NULL
    ORDER BY stripe_customer_id
    ON CONFLICT (stripe_customer_id) DO UPDATE SET organization_id = excluded.organization_id
    WHERE kept.organization_id <> excluded.organization_id
), nobodys AS (
    DELETE FROM customer_organizations
     WHERE stripe_customer_id = ANY (%(customers)s)
       AND stripe_customer_id NOT IN (SELECT stripe_customer_id FROM known WHERE organization_id IS NOT NULL)
)
SELECT organization_id FROM before
UNION
SELECT organization_id FROM known WHERE organization_id IS NOT NULL;

-- name: customers_of_objects
-- Whom these objects belong to as they are kept now: a version that names another customer takes them away from this one.
SELECT stripe_customer_id FROM subscriptions WHERE stripe_subscription_id = ANY (%(ids)s)
UNION
SELECT stripe_customer_id FROM checkout_sessions
 WHERE stripe_session_id = ANY (%(ids)s) AND stripe_customer_id IS NOT NULL;

-- name: customers_after
-- By key, so that everybody is gone through in bounded steps.
SELECT stripe_customer_id
  FROM ((SELECT DISTINCT stripe_customer_id FROM subscriptions
          WHERE stripe_customer_id > %(after)s ORDER BY 1 LIMIT %(limit)s)
        UNION (SELECT DISTINCT stripe_customer_id FROM checkout_sessions
                WHERE stripe_customer_id > %(after)s ORDER BY 1 LIMIT %(limit)s)
        UNION (SELECT stripe_customer_id FROM feature_summaries
                WHERE stripe_customer_id > %(after)s ORDER BY 1 LIMIT %(limit)s)
        UNION (SELECT stripe_customer_id FROM stripe_customers
                WHERE stripe_customer_id > %(after)s ORDER BY 1 LIMIT %(limit)s)
        UNION (SELECT stripe_customer_id FROM customer_organizations
                WHERE stripe_customer_id > %(after)s ORDER BY 1 LIMIT %(limit)s)) known
 ORDER BY stripe_customer_id
 LIMIT %(limit)s;

-- name: organizations_of
SELECT DISTINCT organization_id FROM customer_organizations WHERE stripe_customer_id = ANY (%(customers)s);

-- name: answer_within
-- What the transaction asks after this is broken off when it takes longer.
SELECT set_config('statement_timeout', %(limit)s, true);

-- name: customers_of_nobody
-- Of these customers, those that no mapping and no object of Stripe's gives to an organization.
SELECT customer AS stripe_customer_id
  FROM unnest(%(customers)s::text[]) AS customer
 WHERE NOT EXISTS (SELECT FROM customer_organizations o WHERE o.stripe_customer_id = customer);

-- name: decide_saas
-- The workspace gate of these organizations.  A checkout that was paid opens it until its subscription is known; from
-- then on only subscriptions do.  A row is written only where something changes, so changed_at is when it did.
-- OFFSET 0 keeps the planner to one look by key per customer: while tables grow faster than their statistics it would
-- read all subscriptions once for each organization.
INSERT INTO entitlements AS kept (organization_id, feature, active, reason, stripe_object_id, changed_at)
SELECT o.organization_id, 'saas', decided.active, decided.reason, decided.stripe_object_id, %(now)s
  FROM unnest(%(organizations)s::text[]) AS o(organization_id)
 CROSS JOIN LATERAL (
        SELECT * FROM (
            SELECT s.is_active AS active, 'subscription' AS reason, s.stripe_subscription_id AS stripe_object_id,
                   s.is_active::int * 3 AS strength, s.created_at
              FROM customer_organizations c
             CROSS JOIN LATERAL (SELECT * FROM subscriptions
                                  WHERE stripe_customer_id = c.stripe_customer_id OFFSET 0) s
             WHERE c.organization_id = o.organization_id
            UNION ALL
            SELECT true, 'checkout', k.stripe_session_id, 2, k.created_at
              FROM customer_organizations c
             CROSS JOIN LATERAL (SELECT * FROM checkout_sessions
                                  WHERE stripe_customer_id = c.stripe_customer_id OFFSET 0) k
             WHERE c.organization_id = o.organization_id AND k.mode = 'subscription' AND k.status = 'complete'
               AND k.payment_status IN ('paid', 'no_payment_required')
               AND NOT EXISTS (SELECT FROM subscriptions s WHERE s.stripe_subscription_id = k.stripe_subscription_id)
            UNION ALL
            SELECT false, 'none', NULL, -1, NULL
        ) reasons
        ORDER BY strength DESC, created_at DESC NULLS LAST, stripe_object_id DESC
        LIMIT 1) decided
 ORDER BY o.organization_id
ON CONFLICT (organization_id, feature) DO UPDATE
   SET active = excluded.active, reason = excluded.reason, stripe_object_id = excluded.stripe_object_id,
       changed_at = CASE WHEN kept.active = excluded.active THEN kept.changed_at ELSE excluded.changed_at END
 WHERE (kept.active, kept.reason, kept.stripe_object_id)
       IS DISTINCT FROM (excluded.active, excluded.reason, excluded.stripe_object_id)
RETURNING organization_id;

-- name: decide_features
-- Stripe's own features of these organizations; one that is gone stays as a row that says no.  The gate is not theirs.
-- A summary that was cut short adds features and takes none away: the rest is asked of Stripe.
INSERT INTO entitlements AS kept (organization_id, feature, active, reason, stripe_object_id, changed_at)
SELECT organization_id, feature, bool_or(active), 'stripe_features', max(stripe_customer_id) FILTER (WHERE active), %(now)s
  FROM (SELECT c.organization_id, f.feature, true AS active, c.stripe_customer_id
          FROM customer_organizations c
          JOIN feature_summaries s USING (stripe_customer_id)
         CROSS JOIN unnest(s.features) AS f(feature)
         WHERE c.organization_id = ANY (%(organizations)s)
        UNION ALL
        SELECT e.organization_id, e.feature, e.active AND short.stripe_customer_id IS NOT NULL, short.stripe_customer_id
          FROM entitlements e
          LEFT JOIN LATERAL (
               SELECT max(c.stripe_customer_id) AS stripe_customer_id
                 FROM customer_organizations c JOIN feature_summaries s USING (stripe_customer_id)
                WHERE c.organization_id = e.organization_id AND NOT s.features_complete) short ON true
         WHERE e.organization_id = ANY (%(organizations)s)) known
 WHERE feature <> 'saas'
 GROUP BY organization_id, feature
 ORDER BY organization_id, feature
ON CONFLICT (organization_id, feature) DO UPDATE
   SET active = excluded.active, stripe_object_id = excluded.stripe_object_id,
       changed_at = CASE WHEN kept.active = excluded.active THEN kept.changed_at ELSE excluded.changed_at END
 WHERE (kept.active, kept.stripe_object_id) IS DISTINCT FROM (excluded.active, excluded.stripe_object_id)
RETURNING organization_id;

-- name: entitlements_of
SELECT feature, active, changed_at FROM entitlements WHERE organization_id = %(organization_id)s ORDER BY feature;

-- name: buying_customer
-- The customer that a new subscription of the organization belongs to: whom a person has mapped now, else one that is
-- known to be the organization's and nobody else's.
SELECT stripe_customer_id
  FROM (SELECT stripe_customer_id, 1 AS place
          FROM customer_mappings
         WHERE text_range(organization_id, organization_id, '[]')
               && text_range(%(organization_id)s, %(organization_id)s, '[]')
           AND valid_during @> now()
        UNION ALL
        SELECT c.stripe_customer_id, 2
          FROM customer_organizations c
          JOIN known_customer_organizations k USING (stripe_customer_id, organization_id)
          LEFT JOIN stripe_customers s USING (stripe_customer_id)
         WHERE c.organization_id = %(organization_id)s AND NOT coalesce(s.deleted, false)) known
 ORDER BY place, stripe_customer_id
 LIMIT 1;
