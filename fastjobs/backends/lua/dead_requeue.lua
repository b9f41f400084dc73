-- dead_requeue.lua  Moves dead letters back among the jobs, each with its new envelope.
-- KEYS dead  hash: id to dead letter, "<bytes in the queue's name>:<queue><envelope>"
--      and under the prefix: died, died:<queue>  zsets of ids by time of death
--                            the places of the jobs, as in push.lua
-- ARGV prefix, time shift in s, plan, then id and envelope of each in order
--      plan: MessagePack of {(queue, priority, run_at or nil, delay_s), …}
-- Returns {1 or 0: was it still dead?, …}. FJ_FAILED: nothing was done.
-- Repeat: finds none of them dead and stores nothing.
-- Cost: O(letters), about 3 µs each.

local plan = cmsgpack.unpack(ARGV[3])
local now = now_s(ARGV[2])
local moved, letters = {}, {}
for position, entry in ipairs(plan) do
  local id = ARGV[2 * position + 2]
  local letter = not letters[id] and redis.call('HGET', KEYS[1], id)
  moved[position] = letter and 1 or 0
  if letter then
    letters[id] = letter
    place(entry[1], entry[2], id, ARGV[2 * position + 3], entry[3], entry[4], now)
  end
end

return atomically(function()
  local new_heads = note_new_heads()
  store_placed(now)
  for id, letter in pairs(letters) do
    exhume(id, letter)
  end
  commit()
  wake_for(made_ready)
  wake_for(new_heads)
  return moved
end)
