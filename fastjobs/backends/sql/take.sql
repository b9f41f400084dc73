-- take.sql  take(worker, n, queues[], limit, after[], until[]) → a claim of up to limit jobs: jobs[], slots[], seqs[], more.
--
-- after[]   per queue ten numbers, for priority 0 to 9: ready jobs are looked for above them only
-- until[]   in the same way, and up to these (inclusive), no urgent ones; null: no bound
-- slots[]   1-based places in after[] whose jobs were claimed, with the highest number of them: seqs[]
-- more      true if jobs above after[] were left behind
-- Order: priority 9 first; at each priority the urgent, then the queue whose first job is the oldest; then seq.
-- Called by `exchange` behind its gate. O(jobs + 10 × queues), and O(dead rows) above after[].
--
-- One statement per place that has jobs, nearly always one. A single statement for all places took a third longer: it had to
-- sort by three keys, and to group what it had taken.

create or replace function {schema}.take(
  p_worker text, p_n bigint, p_queues text[], p_limit int, p_after bigint[], p_until bigint[],
  out jobs bytea[], out slots int[], out seqs bigint[], out more boolean
) language plpgsql as $$
#variable_conflict use_column
declare
  -- A claim holds at most this much: of 1 MiB jobs, a batch of 1,000 would not even fit into one row.
  c_bytes constant bigint := 16 * 1024 * 1024;
  c_few constant int := 16;
  v_after bigint[] := p_after;
  v_slot record;
  v_places tid[];
  v_batch bytea[];
  v_count int;
  v_last bigint;
  v_left int := p_limit;
  v_bytes bigint := 0;
  v_large boolean := false;         -- is the claim's size to be watched?
begin
  more := false;
  for v_slot in
    select q.name as queue, p.priority, false as urgent, head.seq, (q.o - 1)::int * 10 + p.priority + 1 as place
    from unnest(p_queues) with ordinality q(name, o) cross join generate_series(0, 9) p(priority)
    cross join lateral (
      select r.seq from {schema}.ready r
      where r.queue = q.name and r.priority = p.priority and r.seq > p_after[(q.o - 1) * 10 + p.priority + 1]
        and r.seq <= coalesce(p_until[(q.o - 1) * 10 + p.priority + 1], 9223372036854775807)
      order by r.seq limit 1) head
    union all
    select q.name, p.priority, true, head.seq, 0
    from unnest(p_queues) q(name) cross join generate_series(0, 9) p(priority)
    cross join lateral (
      select u.seq from {schema}.urgent u where u.queue = q.name and u.priority = p.priority order by u.seq limit 1) head
    where p_until is null and exists (select from {schema}.urgent u where u.queue = any(p_queues))
    order by 2 desc, 3 desc, 4
  loop
    -- ctid = any(array), not a join: with an unknown limit a join becomes a hash join over the whole table
    if v_slot.urgent then
      v_places := array(
        select u.ctid from {schema}.urgent u where u.queue = v_slot.queue and u.priority = v_slot.priority
        order by u.seq limit v_left for update skip locked);
    else
      v_places := array(
        select r.ctid from {schema}.ready r
        where r.queue = v_slot.queue and r.priority = v_slot.priority and r.seq >= v_slot.seq
          and r.seq <= coalesce(p_until[v_slot.place], 9223372036854775807)
        order by r.seq limit v_left for update skip locked);
    end if;
    -- Only many jobs, and only where some over 8 kB have been stored (their table has a size), can be too large; a sum over
    -- each would cost 15 %.
    if not v_large and p_limit - v_left + cardinality(v_places) > c_few then
      select sum(pg_relation_size(c.reltoastrelid)) > 0 into v_large from pg_class c
      where c.oid in ('{schema}.ready'::regclass, '{schema}.urgent'::regclass);
      if v_large then
        v_bytes := (select coalesce(sum(octet_length(b.job)), 0) from unnest(jobs) b(job));
      end if;
    end if;
    if v_large then
      v_count := cardinality(v_places);
      v_places := array(
        select f.place from (
          select a.place, a.seq, sum(a.bytes) over (order by a.seq) - a.bytes as before
          from (
            select r.ctid as place, r.seq, octet_length(r.job) as bytes
            from {schema}.ready r where r.ctid = any(v_places) and not v_slot.urgent
            union all
            select u.ctid, u.seq, octet_length(u.job) from {schema}.urgent u where u.ctid = any(v_places) and v_slot.urgent
          ) a
        ) f
        where v_bytes + f.before < c_bytes order by f.seq);
      more := more or cardinality(v_places) < v_count;
    end if;
    if v_slot.urgent then
      with taken as (delete from {schema}.urgent where ctid = any(v_places) returning seq, job)
      select array_agg(t.job order by t.seq), count(*), max(t.seq) into v_batch, v_count, v_last from taken t;
    else
      with taken as (delete from {schema}.ready where ctid = any(v_places) returning seq, job)
      select array_agg(t.job order by t.seq), count(*), max(t.seq) into v_batch, v_count, v_last from taken t;
    end if;
    if v_count > 0 then
      jobs := case when jobs is null then v_batch else jobs || v_batch end;
      v_left := v_left - v_count;
      if not v_slot.urgent then
        slots := slots || v_slot.place;
        seqs := seqs || v_last;
        v_after[v_slot.place] := v_last;
      end if;
      if v_large then
        v_bytes := v_bytes + (select sum(octet_length(b.job)) from unnest(v_batch) b(job));
      end if;
    end if;
    exit when v_left <= 0 or v_bytes >= c_bytes or more;
  end loop;
  if jobs is null then
    return;
  end if;
  insert into {schema}.claim (worker, n, size, jobs) values (p_worker, p_n, p_limit - v_left, jobs);
  more := more or (v_left <= 0 or v_bytes >= c_bytes) and {schema}.any_ready(p_queues, v_after);
end $$;
