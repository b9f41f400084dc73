-- dead_list.lua  Dead letters, newest first; of one time, the greatest id first.
-- KEYS dead  hash: id to dead letter, "<bytes in the queue's name>:<queue><envelope>"
--      died, or died:<queue>  zset of ids by time of death
-- ARGV limit, time and id before which to begin, both "" to begin with the newest
-- Returns {id, time, dead letter, …}.
-- Cost: O(log n + limit + letters of the time to begin before).

local PAGE = 100

local limit, before_at, before_id = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]

-- Byte by byte, as Redis sorts them: Lua's < follows the server's locale.
local function less(one, other)
  for index = 1, math.min(#one, #other) do
    local left, right = string.byte(one, index), string.byte(other, index)
    if left ~= right then
      return left < right
    end
  end
  return #one < #other
end

local found = {}
local first = before_at and redis.call('ZCOUNT', KEYS[2], '(' .. ARGV[2], '+inf') or 0
while #found < 3 * limit do
  local page = redis.call('ZREVRANGE', KEYS[2], first, first + PAGE - 1, 'WITHSCORES')
  for position = 1, #page, 2 do
    local id, at = page[position], page[position + 1]
    if #found < 3 * limit and (not before_at or tonumber(at) < before_at or less(id, before_id)) then
      local letter = redis.call('HGET', KEYS[1], id)
      if letter then
        found[#found + 1] = id
        found[#found + 1] = at
        found[#found + 1] = letter
      end
    end
  end
  if #page < 2 * PAGE then
    break
  end
  first = first + PAGE
end
return found
