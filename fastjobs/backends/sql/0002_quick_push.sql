-- 0002_quick_push.sql  From version 1 to 2: pushes that ring by themselves (push_rung), and claims of fewer statements. No table
-- changes; version 1's own code goes on working.

drop function if exists {schema}.promote(text[], float8, int);  -- it returned two columns
