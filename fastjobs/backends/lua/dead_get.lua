-- dead_get.lua  One dead letter.
-- KEYS dead  hash: id to dead letter, "<bytes in the queue's name>:<queue><envelope>"
--      died  zset of ids by time of death
-- ARGV id
-- Returns {time, dead letter}, or {} if there is none.
-- Cost: O(1).

local letter = redis.call('HGET', KEYS[1], ARGV[1])
if not letter then
  return {}
end
return {redis.call('ZSCORE', KEYS[2], ARGV[1]), letter}
