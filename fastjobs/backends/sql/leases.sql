-- leases.sql  → every lease with its counter. A lease's row goes with its last worker. O(leases).

select id, counter from {schema}.lease
