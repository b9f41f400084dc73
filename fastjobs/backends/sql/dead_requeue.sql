-- dead_requeue.sql  dead_requeue(shift_s, ids[], queues[], priorities[], run_at[], delay_s[], jobs[]) → the ids that were dead, each
-- now stored as a job. The ids are given once each. O(ids).

create or replace function {schema}.dead_requeue(
  p_shift_s float8, p_ids bytea[], p_queues text[], p_priorities int2[], p_run_at float8[], p_delay_s float8[], p_jobs bytea[]
) returns bytea[] language plpgsql
set jit = off set enable_seqscan = off set enable_bitmapscan = off set plan_cache_mode = force_generic_plan as $$
declare
  v_ids bytea[];
begin
  with gone as (
    delete from {schema}.dead
    where ctid = any(array(select d.ctid from {schema}.dead d where d.id = any(p_ids) order by d.id for update))
    returning id)
  select coalesce(array_agg(g.id), '{}') into v_ids from gone g;
  perform {schema}.name_queues(p_queues);
  perform {schema}.place({schema}.store_time(p_shift_s), array_agg(e.queue), array_agg(e.priority), array_agg(e.run_at),
                         array_agg(e.delay_s), array_agg(e.job))
  from (
    select e.* from unnest(p_ids, p_queues, p_priorities, p_run_at, p_delay_s, p_jobs)
      with ordinality e(id, queue, priority, run_at, delay_s, job, o)
    where e.id = any(v_ids) order by e.o
  ) e;
  return v_ids;
end $$;
