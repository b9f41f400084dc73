-- sweep.sql  sweep(worker, n, queues[], limit, until[], window) → jobs[], until[], window, sweep_s: a claim of what hints have hidden.
--
-- Looks at `window` numbers up to until[], per queue and priority as in take.sql, then at those below, and so on down to 0, until
-- jobs are found or 10 ms are over. Windows of numbers, not of rows, so that dead rows count, of which a long transaction may
-- keep millions. The next window is larger after a quick one and smaller after a slow one.
-- Returned until[], window: where to go on; all 0: nothing is left. sweep_s: how long it took. O(jobs + dead rows in it).

create or replace function {schema}.sweep(
  p_worker text, p_n bigint, p_queues text[], p_limit int, p_until bigint[], p_window bigint,
  out jobs bytea[], out until bigint[], out "window" bigint, out sweep_s float8
) language plpgsql as $$
#variable_conflict use_column
declare
  v_started float8 := {schema}.store_time(0);
  v_before float8 := v_started;
  v_after bigint[];
  v_took_s float8;
begin
  until := p_until;
  "window" := p_window;
  loop
    v_after := array(select greatest(u.seq - "window", 0) from unnest(until) with ordinality u(seq, o) order by u.o);
    select t.jobs into jobs from {schema}.take(p_worker, p_n, p_queues, p_limit, v_after, until) t;
    v_took_s := {schema}.store_time(0) - v_before;
    v_before := v_before + v_took_s;
    if v_took_s < 0.002 then
      "window" := least("window" * 16, 1::bigint << 58);
    elsif v_took_s > 0.02 then
      "window" := greatest("window" / 4, 1000);
    end if;
    exit when jobs is not null;
    until := v_after;
    exit when 0 = all(until) or v_before > v_started + 0.01;
  end loop;
  sweep_s := v_before - v_started;
end $$;
