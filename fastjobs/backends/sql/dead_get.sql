-- dead_get.sql  $1 id → the dead letter. O(1).

select id, died_at, job from {schema}.dead where id = $1
