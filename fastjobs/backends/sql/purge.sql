-- purge.sql  purge(queue, limit) → how many jobs it deleted, up to limit of the ready and as many of the delayed. Called until
-- that is 0: one call for a million would hold its locks for seconds. Leaves alone what an exchange is just taking. O(limit).

create or replace function {schema}.purge(p_queue text, p_limit int) returns bigint language plpgsql
set jit = off set enable_seqscan = off set enable_bitmapscan = off set plan_cache_mode = force_generic_plan as $$
declare
  v_ready bigint;
  v_urgent bigint;
  v_later bigint;
begin
  with gone as (delete from {schema}.ready where ctid = any(array(
    select r.ctid from {schema}.ready r where r.queue = p_queue limit p_limit for update skip locked)) returning 1)
  select count(*) into v_ready from gone;
  with gone as (delete from {schema}.urgent where ctid = any(array(
    select u.ctid from {schema}.urgent u where u.queue = p_queue limit p_limit for update skip locked)) returning 1)
  select count(*) into v_urgent from gone;
  with gone as (delete from {schema}.later where ctid = any(array(
    select l.ctid from {schema}.later l where l.queue = p_queue limit p_limit for update skip locked)) returning 1)
  select count(*) into v_later from gone;
  return v_ready + v_urgent + v_later;
end $$;
