-- push.sql  push(producer, seq, acked, shift_s, queue, priority, jobs[]) → stored?
--
-- The common case of `push`: jobs of one queue and priority, ready at once. Repeatable: the same (producer, seq) stores
-- nothing. O(jobs): one insert into one table with one index.

create or replace function {schema}.push(
  p_producer text, p_seq bigint, p_acked bigint, p_shift_s float8, p_queue text, p_priority int2, p_jobs bytea[]
) returns boolean language plpgsql
set jit = off set enable_seqscan = off set enable_bitmapscan = off set plan_cache_mode = force_generic_plan as $$
begin
  if not {schema}.push_begin(p_producer, p_seq, p_acked, p_shift_s) then
    return false;
  end if;
  perform {schema}.name_queues(array[p_queue]);
  insert into {schema}.ready (queue, priority, job) select p_queue, p_priority, j.job from unnest(p_jobs) j(job);
  return true;
end $$;
