-- workers.sql  $1 lease → its workers, each with its claims, ascending. O(workers + claims).

select w.id, array(select c.n from {schema}.claim c where c.worker = w.id order by c.n) as claims
from {schema}.worker w where w.lease = $1
