-- register.lua  Makes a worker known, with no claims and no calls so far.
-- KEYS worker:<id>    hash, see exchange.lua
--      lease:<lease>  set of the lease's workers
--      leases         hash: lease to counter. It starts at the time in µs, so that a lease made anew shows no value it had before
-- ARGV prefix, worker, lease
-- Returns 1 if new, 0 if known. FJ_GONE if it was given up.
-- Repeat: changes nothing.
-- Cost: O(1).

local known = redis.call('HMGET', KEYS[1], 'n', 'gone')
if known[2] then
  return refusal('FJ_GONE', 'worker ' .. ARGV[2] .. ' was given up; a new process needs a new id')
end
if known[1] then
  return 0
end
local time = redis.call('TIME')

return atomically(function()
  despite_full_memory()
  if redis.call('HSETNX', KEYS[3], ARGV[3], string.format('%.0f', time[1] * 1000000 + time[2])) == 1 then
    undo[#undo + 1] = {'HDEL', KEYS[3], ARGV[3]}
  end
  write({'SADD', KEYS[2], ARGV[2]}, {'SREM', KEYS[2], ARGV[2]})
  redis.call('HSET', KEYS[1], 'n', -1, 'result', '')
  return 1
end)
