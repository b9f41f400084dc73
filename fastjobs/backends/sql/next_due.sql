-- next_due.sql  next_due(queues[]) → when the first delayed job of these queues is or was due; null if there is none. O(queues).

create or replace function {schema}.next_due(p_queues text[]) returns float8 language plpgsql as $$
begin
  return (
    select min(head.due) from unnest(p_queues) q(name),
      lateral (select l.due from {schema}.later l where l.queue = q.name order by l.due, l.seq limit 1) head);
end $$;
