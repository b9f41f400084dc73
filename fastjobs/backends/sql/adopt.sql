-- adopt.sql  adopt(into, n, worker, claims[], limit) → status, jobs[], more
--
-- Moves whole claims of `worker`, oldest first, while their jobs stay within limit (and 64 MB), at least one, into the claim n
-- of `into`. claims null: all of them, and the worker is given up, with the first call, before anything moves; with the last
-- claim of a worker given up, however that is named, it is deleted. Repeatable by n. O(jobs moved).
-- Locks in one order, lease, then workers by id, so that adopters of each other cannot deadlock. A lock that the dead worker's
-- own last call still holds (its connection may take a while to be found dead) is not waited for longer than 2 s.
-- Durable: with its commit, all asynchronous ones before it are.

create or replace function {schema}.adopt(
  p_into text, p_n bigint, p_worker text, p_claims bigint[], p_limit int, out status int2, out jobs bytea[], out more boolean
) language plpgsql
set jit = off set enable_seqscan = off set enable_bitmapscan = off set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
declare
  c_bytes constant bigint := 64 * 1024 * 1024;
  v_call tid;
  v_lease text;
  v_taken bigint[];
  v_left int;
begin
  perform set_config('lock_timeout', '2000', true);
  select w.lease into v_lease from {schema}.worker w where w.id = p_worker;
  perform from {schema}.lease l where l.id = v_lease for update;
  perform from {schema}.worker w where w.id in (p_into, p_worker) order by w.id for update;
  select g.status, g.call into status, v_call from {schema}.gate(p_into, p_n) g;
  if status = 1 then
    select c.more into more from {schema}.call c where c.ctid = v_call;
    select c.jobs into jobs from {schema}.claim c where c.worker = p_into and c.n = p_n;
  end if;
  if status <> 0 then
    return;
  end if;

  if p_claims is null then
    update {schema}.worker set given_up = true where id = p_worker and not given_up;
  end if;
  select coalesce(array_agg(m.n) filter (where m.place = 1 or m.size <= p_limit and m.bytes <= c_bytes), '{}'), count(*)
  into v_taken, v_left
  from (
    select c.n, row_number() over oldest as place, sum(c.size) over oldest as size,
      sum(pg_column_size(c.jobs)) over oldest as bytes
    from {schema}.claim c where c.worker = p_worker and (p_claims is null or c.n = any(p_claims))
    window oldest as (order by c.n)
  ) m;
  with taken as (delete from {schema}.claim c where c.worker = p_worker and c.n = any(v_taken) returning c.n, c.jobs),
  batch as (
    select array_agg(j.job order by t.n, j.o) as jobs, count(*) as size
    from taken t cross join lateral unnest(t.jobs) with ordinality j(job, o))
  insert into {schema}.claim as c (worker, n, size, jobs) select p_into, p_n, b.size, b.jobs from batch b where b.size > 0
  returning c.jobs into jobs;
  more := v_left > cardinality(v_taken);
  if exists (select from {schema}.worker w where w.id = p_worker and w.given_up)
     and not exists (select from {schema}.claim c where c.worker = p_worker) then
    perform {schema}.forget(p_worker, v_lease);
  end if;
  update {schema}.call set n = p_n, kept = null, more = adopt.more, next_due = null where ctid = v_call;
end $$;
