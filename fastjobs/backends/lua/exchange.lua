-- exchange.lua  Settles claims of a worker, makes due jobs ready and claims up to `limit` ready ones.
-- KEYS 1: worker:<id>  hash: n and result of its last call, '' for each open claim by number, gone once it was given up
--      then for each queue: later:<queue>      zset of delayed jobs by due time: priority digit .. id (16 bytes) .. envelope
--                           wake:<queue>       list of at most one marker that wakes a waiter
--                           ready:<queue>:9…0  lists of ready envelopes, head first
--      and under the prefix: claim:<id>:<n>  list of the envelopes of one claim; its existence is the right to settle it
--                            dead, died, died:<queue>, queues, and the places of outcomes of other queues
-- ARGV prefix, worker, n, time shift in s, limit, settlements, then id and envelope of each outcome in order
--      settlements: MessagePack of (claim, outcomes, unfinished indexes, into), an outcome being
--      (index, kind, queue, priority, run_at or nil, delay_s)
-- Returns {"<kept, 1 or 0 each>|<more>|<seconds to the next due job>", envelopes}. FJ_GONE, FJ_STALE, FJ_BAD: nothing was done.
-- Repeat: the same n gets the stored result and the envelopes of its claim, and changes nothing.
-- Cost: about 20 calls + O(jobs claimed) + O(outcomes) + O(log n) for each job that fell due.

local RETRY, DEAD, RELEASED = 1, 2, 3
local MOVE_LIMIT = 1000 -- due jobs moved per queue and call: a million falling due at once stall nobody
local STEP = 100 -- jobs read at a time, so that a queue of the largest jobs costs 100 MiB for a moment, not 1 GiB
local QUEUE_KEYS = 12 -- in KEYS, of one queue

local record, worker, n = KEYS[1], ARGV[2], ARGV[3]
local limit = math.max(tonumber(ARGV[5]), 0)
local settlements = cmsgpack.unpack(ARGV[6])
local claim_key = prefix .. 'claim:' .. worker .. ':'
local queue_count = (#KEYS - 1) / QUEUE_KEYS

local refused, result, forget = called_before(record, worker, n)
if refused then
  return refused
end
if result then
  return {result, redis.call('LRANGE', claim_key .. n, 0, -1)}
end

local function number(value)
  return string.format('%.0f', value)
end

local function whole(value, low, high)
  return type(value) == 'number' and value % 1 == 0 and value >= low and value <= high
end

-- What is wrong with a settlement of a claim of `size` jobs, or nil.
local function fault(settlement, size, taken)
  local claim, outcomes, unfinished = number(settlement[1]), settlement[2], settlement[3]
  local seen = {}
  local function index_fault(index)
    if seen[index] or not whole(index, 0, size - 1) then
      return 'claim ' .. claim .. ' of ' .. size .. ' jobs cannot be settled: index ' .. tostring(index)
        .. (seen[index] and ' twice' or ' is out of range')
    end
    seen[index] = true
  end
  for _, outcome in ipairs(outcomes) do
    local found = index_fault(outcome[1])
    if found then
      return found
    end
    if not whole(outcome[2], RETRY, RELEASED) then
      return 'claim ' .. claim .. ': no such kind of outcome: ' .. tostring(outcome[2])
    end
    if not whole(outcome[4], 0, 9) then
      return 'a priority is 0 to 9, got ' .. tostring(outcome[4])
    end
  end
  for _, index in ipairs(unfinished) do
    local found = index_fault(index)
    if found then
      return found
    end
  end
  if #unfinished > 0 then
    local into = number(settlement[4])
    if taken[into] or redis.call('HEXISTS', record, into) == 1 then
      return 'claim ' .. claim .. ' cannot be split into ' .. into .. ': that number is in use'
    end
    taken[into] = true
  end
end

local kept, ours, taken = {}, {}, {[n] = true}
local next_argument = 7
for position, settlement in ipairs(settlements) do
  local key = claim_key .. number(settlement[1])
  local size = ours[key] and 0 or redis.call('LLEN', key)
  kept[position] = size > 0 and 1 or 0
  if size > 0 then
    local found = fault(settlement, size, taken)
    if found then
      return refusal('FJ_BAD', found)
    end
    ours[key] = true
    ours[#ours + 1] = {key = key, settlement = settlement, first_argument = next_argument}
  end
  next_argument = next_argument + 2 * #settlement[2]
end

local now = now_s(ARGV[4])
local opened, settled_keys, settled_fields = {}, {}, {}

local function settle()
  for _, one in ipairs(ours) do
    local argument = one.first_argument
    for _, outcome in ipairs(one.settlement[2]) do
      local kind, queue, priority = outcome[2], outcome[3], outcome[4]
      local id, envelope = ARGV[argument], ARGV[argument + 1]
      argument = argument + 2
      if kind == DEAD then
        bury(id, queue, envelope)
      elseif kind == RELEASED then
        place_first(queue, priority, envelope)
      else
        place(queue, priority, id, envelope, outcome[5], outcome[6], now)
      end
    end
    local unfinished = one.settlement[3]
    if #unfinished > 0 then
      local jobs, rest = redis.call('LRANGE', one.key, 0, -1), {}
      for position, index in ipairs(unfinished) do
        rest[position] = jobs[index + 1]
      end
      local into = number(one.settlement[4])
      append(claim_key .. into, rest, 1, #rest)
      opened[#opened + 1] = into
      opened[#opened + 1] = ''
    end
    settled_keys[#settled_keys + 1] = one.key
    settled_fields[#settled_fields + 1] = number(one.settlement[1])
  end
end

-- Copies what is due in one queue to its ready lists. Returns how many, and when the next one is due (nil: none is left).
local function copy_due(base)
  local later = KEYS[base]
  local moved, size = 0, 0
  local page = redis.call('ZRANGE', later, 0, 0, 'WITHSCORES')
  while true do
    local levels = {}
    for position = 1, #page, 2 do
      local due = tonumber(page[position + 1])
      if due > now or moved >= MOVE_LIMIT or size > CLAIM_BYTES then
        for key, envelopes in pairs(levels) do
          append(key, envelopes, 1, #envelopes)
        end
        return moved, due
      end
      local member = page[position]
      local digit = string.byte(member) or 0
      if digit >= 48 and digit <= 57 and #member >= 17 then
        add(levels, KEYS[base + 2 + 57 - digit], string.sub(member, 18)) -- 57: "9"
      else
        add(levels, KEYS[base + 2 + 4], member) -- none of ours: whoever claims it sets it aside
      end
      moved, size = moved + 1, size + #member
    end
    for key, envelopes in pairs(levels) do
      append(key, envelopes, 1, #envelopes)
    end
    if #page == 0 then
      return moved, nil
    end
    page = redis.call('ZRANGE', later, moved, moved + STEP - 1, 'WITHSCORES')
  end
end

local jobs, jobs_size = {}, 0
local trims = {} -- {list, how many were copied from its head}

-- Copies jobs from the head of one ready list to the claim. Returns true if the list has none left.
local function copy_ready(key)
  local copied, exhausted, full = 0, false, false
  while #jobs < limit and not exhausted and not full do
    local wanted = math.min(STEP, limit - #jobs)
    local batch = redis.call('LRANGE', key, copied, copied + wanted - 1)
    exhausted = #batch < wanted
    for position = 1, #batch do
      jobs_size = jobs_size + #batch[position]
      if jobs_size > CLAIM_BYTES and #jobs > 0 then
        exhausted, full = false, true
        limit = #jobs
        break
      end
      jobs[#jobs + 1] = batch[position]
      copied = copied + 1
    end
  end
  if copied > 0 then
    trims[#trims + 1] = {key, copied}
  end
  return exhausted or (copied > 0 and redis.call('LLEN', key) == copied)
end

-- Per queue: how many of its ready lists keep jobs. Claims by priority over all queues, which take turns to come first.
local function claim()
  local left, turns = {}, {}
  for turn = 1, queue_count do
    local queue = (turn - 1 + tonumber(n)) % queue_count + 1
    local base = 2 + (queue - 1) * QUEUE_KEYS
    left[queue] = redis.call('EXISTS', unpack(KEYS, base + 2, base + QUEUE_KEYS - 1))
    if left[queue] > 0 then
      turns[#turns + 1] = {queue = queue, base = base, unseen = left[queue]}
    end
  end
  for level = 0, 9 do
    for _, turn in ipairs(turns) do
      if #jobs >= limit then
        break
      end
      if turn.unseen > 0 then
        local key, before = KEYS[turn.base + 2 + level], #jobs
        local exhausted = copy_ready(key)
        if #jobs > before then
          turn.unseen = turn.unseen - 1
          if exhausted then
            left[turn.queue] = left[turn.queue] - 1
          end
        end
      end
    end
  end
  if #jobs > 0 then
    append(claim_key .. n, jobs, 1, #jobs)
    opened[#opened + 1] = n
    opened[#opened + 1] = ''
  end
  return left
end

-- Notes the call in one write: were its claims there without its number, its repeat would be refused.
local function note(answer)
  if #opened > CHUNK then
    write_pairs('HSET', record, opened, 'HDEL', 1)
    opened = {}
  end
  redis.call('HSET', record, 'n', n, 'result', answer, unpack(opened))
  undo[#undo + 1] = forget
  if #opened > 0 then
    local taken_back = {'HDEL', record}
    for position = 1, #opened, 2 do
      taken_back[#taken_back + 1] = opened[position]
    end
    undo[#undo + 1] = taken_back
  end
end

local function remove_originals(due_copied)
  in_chunks(#settled_keys, function(from, to)
    redis.call('UNLINK', unpack(settled_keys, from, to))
    commit()
    redis.call('HDEL', record, unpack(settled_fields, from, to))
  end)
  for queue, count in pairs(due_copied) do
    redis.call('ZREMRANGEBYRANK', KEYS[2 + (queue - 1) * QUEUE_KEYS], 0, count - 1)
    commit()
  end
  for _, trim in ipairs(trims) do
    redis.call('LTRIM', trim[1], trim[2], -1)
    commit()
  end
end

return atomically(function()
  despite_full_memory()
  settle()
  local new_heads = note_new_heads()
  store_placed(now)
  local due_copied, more, next_due = {}, 0, nil
  for queue = 1, queue_count do
    local copied, due = copy_due(2 + (queue - 1) * QUEUE_KEYS)
    if copied > 0 then
      due_copied[queue] = copied
    end
    if due and (not next_due or due < next_due) then
      next_due = due
    end
  end
  local left = claim()
  for queue = 1, queue_count do
    if left[queue] > 0 then
      more = 1
    end
  end
  if next_due and next_due <= now then
    more = 1
  end
  local answer = table.concat(kept) .. '|' .. more .. '|' .. (next_due and string.format('%.6f', math.max(next_due - now, 0)) or '')
  note(answer)
  remove_originals(due_copied)
  for queue = 1, queue_count do
    local base = 2 + (queue - 1) * QUEUE_KEYS
    local name = string.sub(KEYS[base], #prefix + 7) -- after "later:"
    if left[queue] > 0 or new_heads[name] then
      wake(KEYS[base + 1])
    else
      redis.pcall('DEL', KEYS[base + 1]) -- nothing is left to wake for
    end
    new_heads[name], made_ready[name] = nil, nil
  end
  wake_for(new_heads)
  wake_for(made_ready)
  return {answer, jobs}
end)
