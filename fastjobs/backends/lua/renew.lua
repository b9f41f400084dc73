-- renew.lua  Moves a lease's counter on, also when memory is full.
-- KEYS lease:<lease>  set of the lease's workers
--      leases         hash: lease to counter
--      and under the prefix: worker:<id>  hash, see exchange.lua
-- ARGV prefix, lease
-- Returns 1; 0, and nothing was done, if the lease is unknown or all its workers were given up.
-- Repeat: moves it on once more.
-- Cost: O(1), or O(workers of the lease that were given up).

for _, worker in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local known = redis.call('HMGET', prefix .. 'worker:' .. worker, 'n', 'gone')
  if known[1] and not known[2] then
    despite_full_memory()
    redis.call('HINCRBY', KEYS[2], ARGV[2], 1)
    return 1
  end
end
return 0
