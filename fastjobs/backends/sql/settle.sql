-- settle.sql  settle(worker, now, claims[], outcomes…, unfinished…) → kept[]: per claim, was it still the worker's?
--
-- claims          the claims to end, each once
-- o_*[]           outcomes that are not "done", of all claims: claim, kind (1 retry, 2 dead, 3 released) and what to store;
--                 null if there are none
-- u_*[]           jobs that still run: claim, 0-based index in it, id of the new claim; null if there are none
-- A claim that is gone changes nothing. Called by `exchange` behind its gate. O(outcomes + unfinished), per claim with any of these.

create or replace function {schema}.settle(
  p_worker text, p_now float8, p_claims bigint[],
  o_claim bigint[], o_kind int2[], o_id bytea[], o_queue text[], o_priority int2[], o_run_at float8[], o_delay_s float8[],
  o_job bytea[], u_claim bigint[], u_index int[], u_into bigint[]
) returns boolean[] language plpgsql as $$
declare
  v_claim bigint;
  v_jobs bytea[];
  v_ended bigint[];
begin
  if u_claim is not null then
    for v_claim in select c.n from {schema}.claim c where c.worker = p_worker and c.n = any(u_claim) and c.n = any(p_claims) loop
      -- into a variable first: there, unlike in a row, each subscript does not read the whole array
      select c.jobs into v_jobs from {schema}.claim c where c.worker = p_worker and c.n = v_claim;
      insert into {schema}.claim (worker, n, size, jobs)
      select p_worker, min(u.into_claim), count(*), array_agg(v_jobs[u.index + 1] order by u.o)
      from unnest(u_claim, u_index, u_into) with ordinality u(claim, index, into_claim, o)
      where u.claim = v_claim and u.index < cardinality(v_jobs) having count(*) > 0;
    end loop;
  end if;
  with ended as (delete from {schema}.claim c where c.worker = p_worker and c.n = any(p_claims) returning c.n)
  select coalesce(array_agg(e.n), '{}') into v_ended from ended e;
  if o_claim is not null then
    if 1 = any(o_kind) then
      perform {schema}.place(p_now, array_agg(o.queue), array_agg(o.priority), array_agg(o.run_at), array_agg(o.delay_s), array_agg(o.job))
      from (
        select o.* from unnest(o_claim, o_kind, o_queue, o_priority, o_run_at, o_delay_s, o_job)
          with ordinality o(claim, kind, queue, priority, run_at, delay_s, job, i)
        where o.kind = 1 and o.claim = any(v_ended) order by o.i
      ) o;
    end if;
    if 2 = any(o_kind) then
      -- each id once, the last one wins, and in order, so that two settlements cannot deadlock
      insert into {schema}.dead (id, died_at, queue, job)
      select distinct on (o.id) o.id, p_now, o.queue, o.job
      from unnest(o_claim, o_kind, o_id, o_queue, o_job) with ordinality o(claim, kind, id, queue, job, i)
      where o.kind = 2 and o.claim = any(v_ended) order by o.id, o.i desc
      on conflict (id) do update set died_at = excluded.died_at, queue = excluded.queue, job = excluded.job;
    end if;
    if 3 = any(o_kind) then
      insert into {schema}.urgent (queue, priority, job)
      select o.queue, o.priority, o.job
      from unnest(o_claim, o_kind, o_queue, o_priority, o_job) with ordinality o(claim, kind, queue, priority, job, i)
      where o.kind = 3 and o.claim = any(v_ended) order by o.i;
    end if;
  end if;
  return array(select c.n = any(v_ended) from unnest(p_claims) with ordinality c(n, o) order by c.o);
end $$;
