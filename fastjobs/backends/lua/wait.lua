-- wait.lua  What a waiter must know before it blocks on the wake keys.
-- KEYS for each queue: later:<queue>, wake:<queue>, ready:<queue>:9…0; see exchange.lua
-- ARGV time shift in s
-- Returns "" if a job is ready or due, else the seconds until the next one is due, "-" if none is delayed.
--      Markers without a ready job go: they tell of a delayed job that the caller now knows, or of jobs that others took.
-- Repeat: looks again.
-- Cost: 3 calls a queue.

local QUEUE_KEYS = 12

local due
for base = 1, #KEYS, QUEUE_KEYS do
  if redis.call('EXISTS', unpack(KEYS, base + 2, base + QUEUE_KEYS - 1)) > 0 then
    return ''
  end
  local head = redis.call('ZRANGE', KEYS[base], 0, 0, 'WITHSCORES')
  if head[2] then
    due = math.min(tonumber(head[2]), due or math.huge)
  end
end
local left
if due then
  local time = redis.call('TIME')
  left = due - (time[1] + time[2] / 1000000 + ARGV[1])
  if left <= 0 then
    return ''
  end
end
for base = 1, #KEYS, QUEUE_KEYS do
  redis.call('UNLINK', KEYS[base + 1])
end
return left and string.format('%.6f', left) or '-'
