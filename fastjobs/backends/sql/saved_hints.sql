-- saved_hints.sql  saved_hints(queues[]) → per queue ten numbers, as take.sql's after[]: where those before us were. O(queues).

create or replace function {schema}.saved_hints(p_queues text[]) returns bigint[] language sql stable as $$
  select array_agg(coalesce(h.hints[p.priority + 1], 0) order by q.o, p.priority)
  from unnest(p_queues) with ordinality q(name, o) cross join generate_series(0, 9) p(priority)
  left join {schema}.queue h on h.name = q.name
$$;
