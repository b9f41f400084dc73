-- stats.sql  → one row: queues[] by name, ready[], delayed[], dead[], running. One snapshot. O(jobs): reads the indexes whole.

with ready as (
  select queue, count(*) as n from (select queue from {schema}.ready union all select queue from {schema}.urgent) r group by queue
), later as (select queue, count(*) as n from {schema}.later group by queue),
dead as (select queue, count(*) as n from {schema}.dead group by queue),
names as (
  select name from {schema}.queue union select queue from ready union select queue from later union select queue from dead
)
select coalesce(array_agg(n.name order by n.name), '{}') as queues,
  coalesce(array_agg(coalesce(r.n, 0) order by n.name), '{}') as ready,
  coalesce(array_agg(coalesce(l.n, 0) order by n.name), '{}') as delayed,
  coalesce(array_agg(coalesce(d.n, 0) order by n.name), '{}') as dead,
  (select coalesce(sum(size), 0)::bigint from {schema}.claim) as running
from names n left join ready r on r.queue = n.name left join later l on l.queue = n.name left join dead d on d.queue = n.name
