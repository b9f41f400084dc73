-- retire.sql  retire(worker) → false and nothing done while it has claims; else true, and nothing of it is left. Idempotent. O(1).

create or replace function {schema}.retire(p_worker text) returns boolean language plpgsql
set jit = off set enable_seqscan = off set enable_bitmapscan = off set plan_cache_mode = force_generic_plan as $$
declare
  v_lease text;
begin
  select w.lease into v_lease from {schema}.worker w where w.id = p_worker;
  perform from {schema}.lease l where l.id = v_lease for update;
  perform from {schema}.worker w where w.id = p_worker for update;
  if not found then
    return true;
  end if;
  if exists (select from {schema}.claim c where c.worker = p_worker) then
    return false;
  end if;
  perform {schema}.forget(p_worker, v_lease);
  return true;
end $$;
