-- purge.lua  Deletes the ready and delayed jobs of a queue.
-- KEYS later:<queue>, wake:<queue>, ready:<queue>:9…0; see exchange.lua
-- Returns how many jobs went.
-- Repeat: deletes what has come since.
-- Cost: 11 calls; the memory of large lists is freed by a thread of the server.

local count = redis.call('ZCARD', KEYS[1])
for index = 3, #KEYS do
  count = count + redis.call('LLEN', KEYS[index])
end
redis.call('UNLINK', unpack(KEYS))
return count
