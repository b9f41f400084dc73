-- push_rung.sql  push_rung(…, channel, ring) → stored: `push`, and as a transaction of its own behind its commit, a notification.
--
-- One round trip for both, and still nobody's commit waits for another's: in the push's own transaction the notification would
-- hold a lock of the whole server until the disk has answered. If only the second part fails the jobs are stored all the same:
-- a repeat finds them.

create or replace procedure {schema}.push_rung(
  p_producer text, p_seq bigint, p_acked bigint, p_shift_s float8, p_queue text, p_priority int2, p_jobs bytea[],
  p_channel text, p_ring text, inout stored boolean
) language plpgsql as $$
begin
  stored := {schema}.push(p_producer, p_seq, p_acked, p_shift_s, p_queue, p_priority, p_jobs);
  commit;
  if stored then
    -- even a transaction that only notifies writes a commit record: it need not wait for the disk
    perform set_config('synchronous_commit', 'off', true), pg_notify(p_channel, p_ring);
  end if;
end $$;
