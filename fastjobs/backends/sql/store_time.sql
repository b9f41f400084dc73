-- store_time.sql  store_time(shift_s) → the server's clock, moved by the tests' shift: seconds since the epoch. Moves on
-- within a transaction.

create or replace function {schema}.store_time(p_shift_s float8) returns float8
language sql volatile as $$ select date_part('epoch', clock_timestamp()) + p_shift_s $$;
