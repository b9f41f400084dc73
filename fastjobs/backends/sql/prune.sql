-- prune.sql  $1 shift_s: deletes records of pushes: two hours old (the server's clock may step by one between a push and its
-- repeat), or 1 minute old and below what their producer has acked.
-- Each producer's newest record tells its acked and stays its two hours. O(records).

with newest as (select distinct on (producer) producer, acked from {schema}.pushed order by producer, seq desc)
delete from {schema}.pushed p using newest n, (select {schema}.store_time($1) as now) t
where n.producer = p.producer and (p.at < t.now - 7200 or p.at < t.now - 60 and p.seq < n.acked)
