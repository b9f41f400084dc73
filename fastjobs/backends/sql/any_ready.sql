-- any_ready.sql  any_ready(queues[], after[]) → is any job of these queues ready, urgent or above after[] (as in take.sql)? O(10 × queues).
--
-- lateral with a limit, not exists: that becomes a hash join over the whole table where statistics were taken of an empty one.

create or replace function {schema}.any_ready(p_queues text[], p_after bigint[]) returns boolean language plpgsql as $$
begin
  perform from unnest(p_queues) with ordinality q(name, o) cross join generate_series(0, 9) p(priority)
    cross join lateral (
      select from {schema}.ready r
      where r.queue = q.name and r.priority = p.priority and r.seq > p_after[(q.o - 1) * 10 + p.priority + 1]
      order by r.seq limit 1) first
    limit 1;
  if not found then
    perform from unnest(p_queues) q(name)
      cross join lateral (select from {schema}.urgent u where u.queue = q.name order by u.priority desc, u.seq limit 1) first
      limit 1;
  end if;
  return found;
end $$;
