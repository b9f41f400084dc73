-- peek.lua  The first ready envelopes of a queue.
-- KEYS ready:<queue>:9…0  lists of ready envelopes, head first
-- ARGV limit
-- Returns envelopes in the order of a claim.
-- Cost: O(limit).

local found, limit = {}, tonumber(ARGV[1])
for _, key in ipairs(KEYS) do
  if #found >= limit then
    break
  end
  for _, envelope in ipairs(redis.call('LRANGE', key, 0, limit - #found - 1)) do
    found[#found + 1] = envelope
  end
end
return found
