-- renew.sql  $1 lease → a row if it has workers that were not given up. Not repeatable, and need not be: it only counts on. O(1).

update {schema}.lease set counter = counter + 1
where id = $1 and exists (select from {schema}.worker w where w.lease = $1 and not w.given_up)
returning counter
