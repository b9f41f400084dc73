-- retire.lua  Forgets a worker that ended cleanly.
-- KEYS worker:<id>    hash, see exchange.lua
--      lease:<lease>  set of the lease's workers
--      leases         hash: lease to counter
-- ARGV worker, lease, prefix of its claims
-- Returns 1 if it is forgotten or unknown; 0, and nothing was done, while it has open claims.
-- Repeat: changes nothing.
-- Cost: O(its open claims).

for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  if tonumber(field) and redis.call('EXISTS', ARGV[3] .. field) == 1 then
    return 0
  end
end
redis.call('SREM', KEYS[2], ARGV[1]) -- the record goes last: until then a repeat finds it
if redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('HDEL', KEYS[3], ARGV[2])
end
redis.call('UNLINK', KEYS[1])
return 1
