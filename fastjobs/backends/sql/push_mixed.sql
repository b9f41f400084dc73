-- push_mixed.sql  push_mixed(producer, seq, acked, shift_s, queues[], priorities[], run_at[], delay_s[], jobs[]) → stored?
--
-- The general case of `push`. Repeatable as push.sql. O(jobs).

create or replace function {schema}.push_mixed(
  p_producer text, p_seq bigint, p_acked bigint, p_shift_s float8,
  p_queues text[], p_priorities int2[], p_run_at float8[], p_delay_s float8[], p_jobs bytea[]
) returns boolean language plpgsql
set jit = off set enable_seqscan = off set enable_bitmapscan = off set plan_cache_mode = force_generic_plan as $$
begin
  if not {schema}.push_begin(p_producer, p_seq, p_acked, p_shift_s) then
    return false;
  end if;
  perform {schema}.name_queues(p_queues);
  perform {schema}.place({schema}.store_time(p_shift_s), p_queues, p_priorities, p_run_at, p_delay_s, p_jobs);
  return true;
end $$;
