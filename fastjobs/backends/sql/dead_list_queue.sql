-- dead_list_queue.sql  $1, $2, $3 as in dead_list.sql, $4 queue → the same of one queue. O(limit).

select id, died_at, job from {schema}.dead where queue = $4 and (died_at, id) < ($1, $2) order by died_at desc, id desc limit $3
