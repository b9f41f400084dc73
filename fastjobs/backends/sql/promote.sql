-- promote.sql  promote(queues[], now, limit) → when the next delayed job of these queues is due; null if there is none.
--
-- Moves up to limit due jobs to the tail of the ready ones, in the order they were due. They get new numbers: inserts stay at
-- the right edge and hints stay true. O(queues + moved).

create or replace function {schema}.promote(p_queues text[], p_now float8, p_limit int) returns float8 language plpgsql as $$
begin
  with moved as (
    delete from {schema}.later where ctid = any(array(
      select due.ctid from unnest(p_queues) q(name),
        lateral (select l.ctid from {schema}.later l where l.queue = q.name and l.due <= p_now
                 order by l.due, l.seq limit p_limit for update skip locked) due
      limit p_limit))
    returning queue, priority, due, seq, job)
  insert into {schema}.ready (queue, priority, job) select m.queue, m.priority, m.job from moved m order by m.due, m.seq;
  return {schema}.next_due(p_queues);
end $$;
