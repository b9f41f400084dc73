-- promote.sql  promote(queues[], now, limit) → next, look_s
--
-- First moves up to limit due jobs to the tail of the ready ones, in the order they were due. They get new numbers: inserts
-- stay at the right edge and hints stay true.
-- next     when the next delayed job of these queues is due; null if there is none
-- look_s   how long the look for it took. Under a long transaction it walks dead rows; the caller paces itself by that.
-- O(queues + moved).

create or replace function {schema}.promote(p_queues text[], p_now float8, p_limit int, out next float8, out look_s float8)
language plpgsql as $$
declare
  v_before float8 := {schema}.store_time(0);
begin
  next := {schema}.next_due(p_queues);
  look_s := {schema}.store_time(0) - v_before;
  if next <= p_now then
    with moved as (
      delete from {schema}.later where ctid = any(array(
        select due.ctid from unnest(p_queues) q(name),
          lateral (select l.ctid from {schema}.later l where l.queue = q.name and l.due <= p_now
                   order by l.due, l.seq limit p_limit for update skip locked) due
        limit p_limit))
      returning queue, priority, due, seq, job)
    insert into {schema}.ready (queue, priority, job) select m.queue, m.priority, m.job from moved m order by m.due, m.seq;
    next := {schema}.next_due(p_queues);
  end if;
end $$;
