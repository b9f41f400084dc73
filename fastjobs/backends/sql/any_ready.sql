-- any_ready.sql  any_ready(queues[], after[]) → is any job of these queues ready, urgent or above after[] (as in take.sql)? O(10 × queues).

create or replace function {schema}.any_ready(p_queues text[], p_after bigint[]) returns boolean language plpgsql as $$
begin
  return exists (
    select from unnest(p_queues) with ordinality q(name, o) cross join generate_series(0, 9) p(priority)
    where exists (select from {schema}.ready r where r.queue = q.name and r.priority = p.priority
                  and r.seq > p_after[(q.o - 1) * 10 + p.priority + 1])
  ) or exists (select from unnest(p_queues) q(name) where exists (select from {schema}.urgent u where u.queue = q.name));
end $$;
