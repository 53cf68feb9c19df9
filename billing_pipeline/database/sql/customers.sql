-- name: map_customers
INSERT INTO customer_mappings (organization_id, stripe_customer_id)
SELECT * FROM unnest(%(organization_ids)s::text[], %(customers)s::text[]);

-- name: organizations_without_customer
SELECT DISTINCT s.organization_id
  FROM {source} s
 WHERE s.organization_id <> ''
   AND NOT EXISTS (SELECT FROM customer_mappings m WHERE m.organization_id = s.organization_id)
 ORDER BY s.organization_id;
