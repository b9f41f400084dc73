-- push_in.sql  push_in(shift_s, queues[], priorities[], run_at[], delay_s[], jobs[], channel, message)
--
-- `push` inside a transaction of the user's. No producer record: its lock would be held until the user commits, and the
-- transaction is the unit anyway. Not repeatable. Notifies once; the server sends it at the commit. O(jobs).

create or replace function {schema}.push_in(
  p_shift_s float8, p_queues text[], p_priorities int2[], p_run_at float8[], p_delay_s float8[], p_jobs bytea[],
  p_channel text, p_message text
) returns void language plpgsql as $$
begin
  perform {schema}.place({schema}.store_time(p_shift_s), p_queues, p_priorities, p_run_at, p_delay_s, p_jobs);
  perform pg_notify(p_channel, p_message);
end $$;
