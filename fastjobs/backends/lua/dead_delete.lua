-- dead_delete.lua  Deletes dead letters.
-- KEYS dead  hash: id to dead letter, "<bytes in the queue's name>:<queue><envelope>"
--      and under the prefix: died, died:<queue>  zsets of ids by time of death
-- ARGV prefix, ids
-- Returns {1 or 0: was it there?, …}. FJ_FAILED: nothing was done.
-- Repeat: finds none of them.
-- Cost: O(log n) each.

return atomically(function()
  local deleted = {}
  for position = 2, #ARGV do
    local letter = redis.call('HGET', KEYS[1], ARGV[position])
    deleted[position - 1] = letter and 1 or 0
    if letter then
      exhume(ARGV[position], letter)
    end
  end
  return deleted
end)
