-- name_queues.sql  name_queues(names[]): remembers names of queues. In order, so that two callers cannot deadlock; and looked
-- up before, for an insert that meets a row still costs a number and a lock. Repeatable. O(names).

create or replace function {schema}.name_queues(p_names text[]) returns void language sql as $$
  insert into {schema}.queue (name)
  select distinct n.name collate "C" from unnest(p_names) n(name)
  where not exists (select from {schema}.queue q where q.name = n.name)
  order by 1 on conflict do nothing
$$;
