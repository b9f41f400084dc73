-- 0001_tables.sql  The tables of version 1.
--
-- Jobs are opaque bytea. Times are seconds since the epoch on the server's clock (plus the tests' shift), as float8: no value
-- a client may send is out of its range. A text that is only ever compared for equality or shown is collated "C".
-- Measured choices: text costs no more than an int4 for the queue (within 5 %); ids of tables are job_seq's bigints.

create table {schema}.meta (
  single boolean primary key default true check (single),
  version int not null,             -- of this schema: the number of its last migration
  min_compatible int not null       -- the lowest version of fastjobs' own that may still use it
);

create sequence {schema}.job_seq;   -- no cache: a later number must mean a later insert, hints rely on it

-- Ready jobs: only inserted and deleted, never updated, with one index. Statistics of a table that is empty half of the time
-- only mislead the planner, so it is never analysed; autovacuum comes by count and is not slowed down.
create table {schema}.ready (
  queue text collate "C" not null,
  priority int2 not null,
  seq bigint not null default nextval('{schema}.job_seq'),
  job bytea not null
) with (toast_tuple_target = 8160, vacuum_truncate = off,
  autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000, autovacuum_vacuum_insert_threshold = -1,
  autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 2000000000,
  toast.vacuum_truncate = off, toast.autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_threshold = 20000,
  toast.autovacuum_vacuum_insert_threshold = -1, toast.autovacuum_vacuum_cost_delay = 0);
alter table {schema}.ready alter job set storage external;  -- compressing costs more than it saves
create index ready_order on {schema}.ready (queue, priority desc, seq);

-- Released jobs: at each priority before the ready ones. Small, nearly always empty.
create table {schema}.urgent (
  queue text collate "C" not null,
  priority int2 not null,
  seq bigint not null default nextval('{schema}.job_seq'),
  job bytea not null
) with (vacuum_truncate = off, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500,
  autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 2000000000);
alter table {schema}.urgent alter job set storage external;
create index urgent_order on {schema}.urgent (queue, priority desc, seq);

-- Delayed jobs, until an exchange finds them due.
create table {schema}.later (
  queue text collate "C" not null,
  due float8 not null,
  seq bigint not null default nextval('{schema}.job_seq'),
  priority int2 not null,
  job bytea not null
) with (toast_tuple_target = 8160, vacuum_truncate = off,
  autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000, autovacuum_vacuum_insert_threshold = -1,
  autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 2000000000);
alter table {schema}.later alter job set storage external;
create index later_order on {schema}.later (queue, due, seq);

-- Dead letters.
create table {schema}.dead (
  id bytea primary key,
  died_at float8 not null,
  queue text collate "C" not null,
  job bytea not null
);
create index dead_order on {schema}.dead (died_at, id);
create index dead_queue_order on {schema}.dead (queue, died_at, id);

-- One row per claim, inserted and deleted, never updated. That it exists is the fencing token.
create table {schema}.claim (
  worker text collate "C" not null,
  n bigint not null,                -- number of the call that made it
  size int not null,
  jobs bytea[] not null,
  primary key (worker, n)
) with (vacuum_truncate = off, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500,
  autovacuum_vacuum_insert_threshold = -1, autovacuum_vacuum_cost_delay = 0,
  autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 2000000000,
  toast.vacuum_truncate = off, toast.autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_threshold = 20000,
  toast.autovacuum_vacuum_insert_threshold = -1, toast.autovacuum_vacuum_cost_delay = 0);
alter table {schema}.claim alter jobs set storage external;

-- One row per worker. Every call of a worker locks it first, in place: no dead rows.
create table {schema}.worker (
  id text collate "C" primary key,
  lease text collate "C" not null,
  given_up boolean not null default false
) with (fillfactor = 70);
create index worker_lease on {schema}.worker (lease);

-- Each worker's last call with its result. n is indexed so that the newest row is found first, whatever a long transaction
-- keeps of its forerunners: a row updated in place would make each call walk all its old versions.
create table {schema}.call (
  worker text collate "C" not null,
  n bigint not null,
  kept boolean[],
  more boolean not null default false,
  next_due float8,
  primary key (worker, n)
) with (vacuum_truncate = off, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500,
  autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 2000000000);

-- One row per lease that has workers.
create table {schema}.lease (
  id text collate "C" primary key,
  counter bigint not null
) with (fillfactor = 50);

-- One row per push, for as long as its producer may repeat it.
create table {schema}.pushed (
  producer text collate "C" not null,
  seq bigint not null,
  acked bigint not null,            -- as this push told it
  at float8 not null,
  primary key (producer, seq)
) with (vacuum_truncate = off, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
  autovacuum_vacuum_insert_threshold = -1, autovacuum_vacuum_cost_delay = 0,
  autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 2000000000);

-- Every queue that ever held a job. hints: what workers have claimed up to, for priority 0 to 9, for those that start anew.
create table {schema}.queue (
  name text collate "C" primary key,
  hints bigint[] not null default '{0,0,0,0,0,0,0,0,0,0}'
) with (fillfactor = 50);
