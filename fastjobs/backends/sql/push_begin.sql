-- push_begin.sql  push_begin(producer, seq, acked, shift_s) → true: store the jobs; false: this push was already here.
--
-- Stores the push's record, in the transaction that stores its jobs. A second call with the same pair waits for the first.
-- Below what the producer's newest push told as acked nothing is new, even if its record was pruned. O(1).
-- Where commits are not durable by default, this one is made so: accepted means stored.

create or replace function {schema}.push_begin(p_producer text, p_seq bigint, p_acked bigint, p_shift_s float8)
returns boolean language plpgsql as $$
begin
  if current_setting('synchronous_commit') = 'off' then
    perform set_config('synchronous_commit', 'on', true);
  end if;
  insert into {schema}.pushed (producer, seq, acked, at)
  select p_producer, p_seq, p_acked, {schema}.store_time(p_shift_s)
  where p_seq >= coalesce((select p.acked from {schema}.pushed p where p.producer = p_producer order by p.seq desc limit 1), p_seq)
  on conflict do nothing;
  return found;
end $$;
