-- dead_delete.sql  $1 ids[] → those that were there. Locks in order, as all that touch several dead letters. O(ids).

delete from {schema}.dead where ctid = any(array(select ctid from {schema}.dead where id = any($1) order by id for update))
returning id
