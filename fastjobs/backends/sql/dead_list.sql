-- dead_list.sql  $1, $2 died_at and id to stay below, $3 limit → dead letters of all queues, newest first. O(limit).

select id, died_at, job from {schema}.dead where (died_at, id) < ($1, $2) order by died_at desc, id desc limit $3
