-- peek.sql  $1 queue, $2 limit → ready jobs in the order of a claim, locked by nobody. O(limit).

select p.job
from (
  (select priority, 0 as o, seq, job from {schema}.urgent where queue = $1 order by priority desc, seq limit $2)
  union all
  (select priority, 1, seq, job from {schema}.ready where queue = $1 order by priority desc, seq limit $2)
) p
order by p.priority desc, p.o, p.seq limit $2
