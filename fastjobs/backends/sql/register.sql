-- register.sql  register(worker, lease) → false if it was given up and has claims left; else it is known from now on. Idempotent.
--
-- Locks the lease's row, as all do that add or remove its workers: it must not be deleted by the retirement of another
-- worker that does not see this one yet. A lease's counter starts at the time in µs, so that one made anew shows no value it
-- had before: to observers it would have stood still. O(1).

create or replace function {schema}.register(p_worker text, p_lease text) returns boolean language plpgsql as $$
begin
  insert into {schema}.lease (id, counter) values (p_lease, ({schema}.store_time(0) * 1000000)::bigint) on conflict (id) do update set counter = lease.counter;
  insert into {schema}.worker (id, lease) values (p_worker, p_lease) on conflict do nothing;
  if found then
    insert into {schema}.call (worker, n) values (p_worker, -1);
    return true;
  end if;
  return exists (select from {schema}.worker w where w.id = p_worker and not w.given_up);
end $$;
