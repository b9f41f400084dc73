-- forget.sql  forget(worker, lease): deletes a worker without claims, and its lease if it was the last one's. The caller has
-- locked the lease's row, then the worker's. O(1).

create or replace function {schema}.forget(p_worker text, p_lease text) returns void language plpgsql as $$
begin
  delete from {schema}.call where worker = p_worker;
  delete from {schema}.worker where id = p_worker;
  if not exists (select from {schema}.worker where lease = p_lease) then
    delete from {schema}.lease where id = p_lease;
  end if;
end $$;
