-- workers.lua  The workers of a lease with their open claims.
-- KEYS lease:<lease>  set of the lease's workers
--      and under the prefix: worker:<id>  hash, see exchange.lua
-- ARGV prefix of the workers' records
-- Returns {worker, {field of its record, …}, …}; the fields that are numbers are its open claims.
-- Cost: O(workers + open claims).

local found = {}
for _, worker in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  found[#found + 1] = worker
  found[#found + 1] = redis.call('HKEYS', ARGV[1] .. worker)
end
return found
