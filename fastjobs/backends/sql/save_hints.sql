-- save_hints.sql  save_hints(queues[], after[]): keeps hints for those that start anew. A row that another is just writing is left
-- to it. O(queues).

create or replace function {schema}.save_hints(p_queues text[], p_after bigint[]) returns void language sql as $$
  update {schema}.queue h set hints = p_after[(q.o - 1) * 10 + 1 : q.o * 10]
  from unnest(p_queues) with ordinality q(name, o)
  where h.name = q.name
    and h.ctid = any(array(select l.ctid from {schema}.queue l where l.name = any(p_queues) for update skip locked))
$$;
