-- gate.sql  gate(worker, n) → how the worker's call number n stands, and the place of its last call's row.
--
-- status  0 new: do the work, then store n with its result at `call`; 1 a repeat of the last call: answer from `call`;
--         2 stale, 3 the worker is unknown or given up: do nothing.
-- Holds the worker's row locked to the end of the transaction, so a worker's calls, and the adoption of its claims, come one
-- after the other. Two statements: what is read after the lock was granted must be read with a snapshot of its own. O(1).

create or replace function {schema}.gate(p_worker text, p_n bigint, out status int2, out call tid)
language plpgsql as $$
declare
  v_given_up boolean;
  v_last bigint;
begin
  select w.given_up into v_given_up from {schema}.worker w where w.id = p_worker for update;
  if not found or v_given_up then
    status := 3;
    return;
  end if;
  select c.n, c.ctid into v_last, call from {schema}.call c where c.worker = p_worker order by c.n desc limit 1;
  status := case when p_n > v_last then 0 when p_n = v_last then 1 else 2 end;
end $$;
