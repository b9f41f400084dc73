-- take.sql  take(worker, n, queues[], limit, after[], until[]) → a claim of up to limit jobs: jobs[], slots[], seqs[], more.
--
-- after[]   per queue ten numbers, for priority 0 to 9: ready jobs are looked for above them only
-- until[]   in the same way, and up to these (inclusive), no urgent ones; null: no bound
-- slots[]   1-based places in after[] whose jobs were claimed, with the highest number of them: seqs[]
-- more      true if jobs above after[] were left behind
-- Order: priority 9 first; at each priority the urgent, then the queue whose first job is the oldest; then seq.
-- Called by `exchange` behind its gate. O(jobs + 10 × queues), and O(dead rows) above after[].

create or replace function {schema}.take(
  p_worker text, p_n bigint, p_queues text[], p_limit int, p_after bigint[], p_until bigint[],
  out jobs bytea[], out slots int[], out seqs bigint[], out more boolean
) language plpgsql as $$
#variable_conflict use_column
declare
  -- A claim holds at most this much: of 1 MiB jobs, a batch of 1,000 would not even fit into one row.
  c_bytes constant bigint := 16 * 1024 * 1024;
  v_after bigint[] := p_after;
  v_has_urgent boolean := p_until is null and exists (select from {schema}.urgent u where u.queue = any(p_queues));
  v_ready tid[];
  v_urgent tid[];
  v_count int;
  v_trimmed boolean := false;
begin
  more := false;
  -- ctid = any(array) further down, not a join: with an unknown limit a join becomes a hash join over the whole table
  select array_agg(p.place) filter (where not p.urgent), array_agg(p.place) filter (where p.urgent), count(*)
  into v_ready, v_urgent, v_count
  from (
    select s.urgent, k.place
    from (
      select q.name as queue, p.priority, false as urgent, head.seq, p_until[(q.o - 1) * 10 + p.priority + 1] as until
      from unnest(p_queues) with ordinality q(name, o) cross join generate_series(0, 9) p(priority)
      cross join lateral (
        select r.seq from {schema}.ready r
        where r.queue = q.name and r.priority = p.priority and r.seq > p_after[(q.o - 1) * 10 + p.priority + 1]
          and r.seq <= coalesce(p_until[(q.o - 1) * 10 + p.priority + 1], 9223372036854775807)
        order by r.seq limit 1) head
      union all
      select q.name, p.priority, true, head.seq, null
      from unnest(p_queues) q(name) cross join generate_series(0, 9) p(priority)
      cross join lateral (
        select u.seq from {schema}.urgent u where u.queue = q.name and u.priority = p.priority order by u.seq limit 1) head
      where v_has_urgent
      order by 2 desc, 3 desc, 4
    ) s,
    lateral (
      select a.place from (
        select u.ctid as place from {schema}.urgent u where s.urgent and u.queue = s.queue and u.priority = s.priority
        order by u.seq limit p_limit for update skip locked) a
      union all
      select b.place from (
        select r.ctid as place from {schema}.ready r
        where not s.urgent and r.queue = s.queue and r.priority = s.priority and r.seq >= s.seq
          and r.seq <= coalesce(s.until, 9223372036854775807)
        order by r.seq limit p_limit for update skip locked) b
    ) k
    limit p_limit
  ) p;
  if v_count = 0 then
    return;
  end if;

  -- Only where jobs over 8 kB have been stored (their table has a size) can a batch be too large; a sum over each would cost 15 %.
  if (select sum(pg_relation_size(c.reltoastrelid)) > 0 from pg_class c
      where c.oid in ('{schema}.ready'::regclass, '{schema}.urgent'::regclass)) then
    select array_agg(f.place) filter (where not f.urgent), array_agg(f.place) filter (where f.urgent), count(*) < v_count
    into v_ready, v_urgent, v_trimmed
    from (
      select a.place, a.urgent, sum(a.bytes) over (order by a.priority desc, a.urgent desc, a.seq) - a.bytes as before
      from (
        select r.ctid as place, false as urgent, r.priority, r.seq, octet_length(r.job) as bytes
        from {schema}.ready r where r.ctid = any(v_ready)
        union all
        select u.ctid, true, u.priority, u.seq, octet_length(u.job) from {schema}.urgent u where u.ctid = any(v_urgent)
      ) a
    ) f
    where f.before < c_bytes;
  end if;

  with taken as (
    delete from {schema}.ready where ctid = any(v_ready) returning queue, priority, seq, job
  ), released as (
    delete from {schema}.urgent where ctid = any(v_urgent) returning priority, seq, job
  ), batch as (  -- what a delete returns comes in physical order
    select array_agg(b.job order by b.priority desc, b.o, b.seq) as jobs, count(*) as size
    from (select 0 as o, r.priority, r.seq, r.job from released r
          union all select 1, t.priority, t.seq, t.job from taken t) b
  ), moved as (
    select (array_position(p_queues, t.queue) - 1) * 10 + t.priority + 1 as slot, max(t.seq) as seq
    from taken t group by t.queue, t.priority
  )
  insert into {schema}.claim as c (worker, n, size, jobs) select p_worker, p_n, b.size, b.jobs from batch b
  returning c.jobs, (select array_agg(m.slot) from moved m), (select array_agg(m.seq) from moved m) into jobs, slots, seqs;

  if v_trimmed then
    more := true;
  elsif v_count = p_limit then
    for i in 1 .. coalesce(cardinality(slots), 0) loop
      v_after[slots[i]] := seqs[i];
    end loop;
    more := {schema}.any_ready(p_queues, v_after);
  end if;
end $$;
