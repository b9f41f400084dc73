-- stats.lua  Counts of every queue and of what runs.
-- KEYS queues  set of the names of all queues
--      leases  hash: lease to counter
--      and under the prefix: ready:<queue>:<p>, later:<queue>, died:<queue>, lease:<lease>, worker:<id>, claim:<id>:<n>
-- ARGV prefix
-- Returns {jobs in claims, {queue, ready, delayed, dead}, …}.
-- Cost: 12 calls a queue + O(workers + open claims); no job is read.

local prefix = ARGV[1]
local running = 0
for _, lease in ipairs(redis.call('HKEYS', KEYS[2])) do
  for _, worker in ipairs(redis.call('SMEMBERS', prefix .. 'lease:' .. lease)) do
    for _, field in ipairs(redis.call('HKEYS', prefix .. 'worker:' .. worker)) do
      if tonumber(field) then
        running = running + redis.call('LLEN', prefix .. 'claim:' .. worker .. ':' .. field)
      end
    end
  end
end
local counts = {running}
for _, queue in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local ready = 0
  for priority = 0, 9 do
    ready = ready + redis.call('LLEN', prefix .. 'ready:' .. queue .. ':' .. priority)
  end
  local delayed = redis.call('ZCARD', prefix .. 'later:' .. queue)
  counts[#counts + 1] = {queue, ready, delayed, redis.call('ZCARD', prefix .. 'died:' .. queue)}
end
return counts
