-- Types the tables need before they can be created.

-- A range over text: `text_range(x, x, '[]') && text_range(y, y, '[]')` is `x = y`, but GiST can index it
-- with what PostgreSQL ships; managed servers do not always offer the btree_gist extension.
CREATE TYPE billing_pipeline.text_range AS RANGE (subtype = text, collation = "C");
