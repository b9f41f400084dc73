-- exchange.sql  exchange(…) → status, kept[], jobs[], more, next_due_s, slots[], seqs[], sweep_s, until[], window, look_s: the
-- hot path.
--
-- worker, n, shift_s      whose call, its number, the tests' clock
-- claims … u_into         as in settle.sql; claims null if there is nothing to settle
-- queues, limit           what to claim; limit 0: only settle
-- after                   hints, as in take.sql: ready jobs are expected above them. Null: use the saved ones
-- until, window           what hints hide is found by sweeps, as in sweep.sql: begin at `until` (null: at the hints) with
--                         windows of `window` (null: do not sweep)
-- sweep_first             sweep before the hints are tried, else only if they find nothing
-- save                    keep the hints for those that start anew
-- promote                 move due jobs; the caller leaves it out now and then when that has become slow
--
-- status                  as in gate.sql; all else is null unless it is 0 or 1
-- slots, seqs             hints to change, 1-based, and their new values
-- sweep_s, until, window  how long the sweep took (null: not done), and where to go on, as in sweep.sql
-- look_s                  how long the look for due jobs took; null if not done
-- Repeatable by n. One transaction of asynchronous commit: all of it moves what is stored already, and a move lost in a crash
-- of the server only means that jobs run again.

create or replace function {schema}.exchange(
  p_worker text, p_n bigint, p_shift_s float8, p_claims bigint[],
  o_claim bigint[], o_kind int2[], o_id bytea[], o_queue text[], o_priority int2[], o_run_at float8[], o_delay_s float8[],
  o_job bytea[], u_claim bigint[], u_index int[], u_into bigint[],
  p_queues text[], p_limit int, p_after bigint[], p_until bigint[], p_window bigint,
  p_sweep_first boolean, p_save boolean, p_promote boolean,
  out status int2, out kept boolean[], out jobs bytea[], out more boolean, out next_due_s float8,
  out slots int[], out seqs bigint[], out sweep_s float8, out until bigint[], out "window" bigint, out look_s float8
) language plpgsql
set jit = off set enable_seqscan = off set enable_bitmapscan = off set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
declare
  v_now float8 := {schema}.store_time(p_shift_s);
  v_call tid;
  v_next float8;
  v_gate record;                    -- assigned: 1.0 µs where "select … into" takes 2.4; an array of jobs would be copied more
  v_after bigint[] := p_after;
  v_until bigint[] := p_until;
begin
  perform set_config('synchronous_commit', 'off', true);
  v_gate := {schema}.gate(p_worker, p_n);
  status := v_gate.status;
  v_call := v_gate.call;
  if status = 1 then
    select c.kept, c.more, c.next_due - v_now into kept, more, next_due_s from {schema}.call c where c.ctid = v_call;
    select c.jobs into jobs from {schema}.claim c where c.worker = p_worker and c.n = p_n;
  end if;
  if status <> 0 then
    return;
  end if;
  more := false;
  if p_claims is not null then
    kept := {schema}.settle(p_worker, v_now, p_claims, o_claim, o_kind, o_id, o_queue, o_priority, o_run_at, o_delay_s, o_job,
                            u_claim, u_index, u_into);
  end if;
  if p_limit > 0 then
    if p_promote then
      look_s := {schema}.store_time(0);
      select min(head.due) into v_next from unnest(p_queues) q(name),
        lateral (select l.due from {schema}.later l where l.queue = q.name order by l.due, l.seq limit 1) head;
      look_s := {schema}.store_time(0) - look_s;
      if v_next <= v_now then
        v_next := {schema}.promote(p_queues, v_now, greatest(p_limit, 1000));
      end if;
    end if;
    if p_after is null then
      v_after := {schema}.saved_hints(p_queues);
      v_until := v_after;
    end if;
    -- what a sweep finds lies below the hints and does not change them
    if p_sweep_first and p_window is not null then
      select w.jobs, w.sweep_s, w.until, w.window into jobs, sweep_s, until, "window"
      from {schema}.sweep(p_worker, p_n, p_queues, p_limit, v_until, p_window) w;
      more := jobs is not null and {schema}.any_ready(p_queues, v_after);
    end if;
    if jobs is null then
      select t.jobs, t.slots, t.seqs, t.more into jobs, slots, seqs, more
      from {schema}.take(p_worker, p_n, p_queues, p_limit, v_after, null) t;
    end if;
    if jobs is null and not p_sweep_first and p_window is not null then
      select w.jobs, w.sweep_s, w.until, w.window, w.jobs is not null into jobs, sweep_s, until, "window", more
      from {schema}.sweep(p_worker, p_n, p_queues, p_limit, v_until, p_window) w;
    end if;
    if p_after is null or p_save then
      for i in 1 .. coalesce(cardinality(slots), 0) loop
        v_after[slots[i]] := seqs[i];
      end loop;
      if p_save then
        perform {schema}.save_hints(p_queues, v_after);
      end if;
      if p_after is null then
        slots := array(select generate_subscripts(v_after, 1));
        seqs := v_after;
      end if;
    end if;
  end if;
  update {schema}.call set n = p_n, kept = exchange.kept, more = exchange.more, next_due = v_next where ctid = v_call;
  next_due_s := v_next - v_now;
end $$;
