-- place.sql  place(now, queues[], priorities[], run_at[], delay_s[], jobs[]): stores jobs where they belong, ready or delayed,
-- in the order given. run_at null: due delay_s from now. Called by what moves jobs of several queues or times. O(jobs).

create or replace function {schema}.place(
  p_now float8, p_queues text[], p_priorities int2[], p_run_at float8[], p_delay_s float8[], p_jobs bytea[]
) returns void language plpgsql as $$
begin
  insert into {schema}.ready (queue, priority, job)
  select e.queue, e.priority, e.job
  from unnest(p_queues, p_priorities, p_run_at, p_delay_s, p_jobs) with ordinality e(queue, priority, run_at, delay_s, job, o)
  where coalesce(e.run_at, p_now + e.delay_s) <= p_now order by e.o;
  insert into {schema}.later (queue, priority, due, job)
  select e.queue, e.priority, coalesce(e.run_at, p_now + e.delay_s), e.job
  from unnest(p_queues, p_priorities, p_run_at, p_delay_s, p_jobs) with ordinality e(queue, priority, run_at, delay_s, job, o)
  where coalesce(e.run_at, p_now + e.delay_s) > p_now order by e.o;
end $$;
