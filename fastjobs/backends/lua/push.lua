-- push.lua  Stores the jobs of one push, unless it was stored before.
-- KEYS producer:<id>  hash: low (all pushes below it were answered), '' for each later push stored; gone after two silent hours
--      and under the prefix: queues             set of the names of all queues
--                            ready:<queue>:<p>  list of envelopes    later:<queue>  zset, see exchange.lua
--                            wake:<queue>       list of at most one marker
-- ARGV prefix, seq, acked, time shift in s, plan, then the envelopes that are ready at once, in the plan's order,
--      then id and envelope of each of the others
--      plan: MessagePack of ({(queue, priority, count), …}, {(queue, priority, run_at or nil, delay_s), …})
-- Returns 1, or 0 if this push was stored before. FJ_FAILED: nothing was done, as when memory is full.
-- Repeat: stores nothing.
-- Cost: O(jobs), 0.2 to 0.3 µs each; O(log n) each for delayed ones.

local KEPT_S = 7200 -- producers repeat for at most 300 s; after a failover by the clock of another server, an hour ahead

local record, seq, acked = KEYS[1], ARGV[2], tonumber(ARGV[3])
local plan = cmsgpack.unpack(ARGV[5])
local existed = redis.call('EXISTS', record)
local known = redis.call('HMGET', record, 'low', seq)
local low = tonumber(known[1] or 0)
local answered = {}
if acked > low then
  for _, field in ipairs(redis.call('HKEYS', record)) do
    local passed = tonumber(field)
    if passed and passed < acked then
      answered[#answered + 1] = field
    end
  end
end
local new_low = math.max(low, acked)
local is_new = tonumber(seq) >= new_low and not known[2]
local now = #plan[2] > 0 and now_s(ARGV[4])

local function note()
  local fields = {'HSET', record, 'low', string.format('%.0f', new_low)}
  local back = {'UNLINK', record}
  if existed == 1 then
    back = {'HDEL', record, seq}
    undo[#undo + 1] = {'HSET', record, 'low', string.format('%.0f', low)}
  end
  if is_new then
    fields[5], fields[6] = seq, ''
  end
  write(fields, back)
  redis.call('EXPIRE', record, KEPT_S)
end

local function store()
  local position = 6
  for _, bundle in ipairs(plan[1]) do
    local queue, count = bundle[1], bundle[3]
    knows_queue[queue], made_ready[queue] = true, true
    append(ready_key(queue, bundle[2]), ARGV, position, position + count - 1)
    position = position + count
  end
  for _, entry in ipairs(plan[2]) do
    place(entry[1], entry[2], ARGV[position], ARGV[position + 1], entry[3], entry[4], now)
    position = position + 2
  end
  local new_heads = note_new_heads()
  store_placed(now)
  return new_heads
end

return atomically(function()
  local new_heads = is_new and store() or {}
  note() -- last: a push that stands in the record without its jobs would never be stored
  commit()
  in_chunks(#answered, function(from, to)
    redis.call('HDEL', record, unpack(answered, from, to))
  end)
  wake_for(made_ready)
  wake_for(new_heads)
  return is_new and 1 or 0
end)
