-- waiting.sql  waiting(queues[], shift_s, after[]) → is a job of these queues ready or due?
--
-- after[]   hints as in take.sql, the saved ones if null; what lies behind them is not seen. O(10 × queues).

create or replace function {schema}.waiting(p_queues text[], p_shift_s float8, p_after bigint[]) returns boolean language plpgsql
set jit = off set enable_seqscan = off set enable_bitmapscan = off set plan_cache_mode = force_generic_plan as $$
begin
  return {schema}.any_ready(p_queues, coalesce(p_after, {schema}.saved_hints(p_queues)))
    or coalesce({schema}.next_due(p_queues) <= {schema}.store_time(p_shift_s), false);
end $$;
