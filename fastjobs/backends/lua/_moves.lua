-- _moves.lua  Stands before each script that moves jobs or must work on a full server. ARGV[1]: prefix of all keys, "{fj}:".
--
-- Redis does not roll a script back when one of its calls fails. So each script here
--   1. reads and checks everything before its first write,
--   2. writes the copies of jobs through the functions below, which note how to take each step back,
--   3. removes originals only after that,
-- and `atomically` takes back what was noted when a call fails: because of a key of a foreign type, a forbidden command, a
-- cluster slot on the move (it refuses keys that do not exist yet). If even that fails, a job is there twice, never nowhere.
--
-- Memory: with maxmemory reached, Redis 6.2 to 8 and Valkey 8 and 9 alike refuse only a script's *first* write, and only if
-- that command can grow memory (RPUSH, HSET, …; not UNLINK, LTRIM). `despite_full_memory` writes nothing in a harmless way
-- first: so push is refused as a whole while workers still claim, settle and renew, which is what frees the memory.
--
-- TIME before a write needs effects replication: the default since Redis 5, the only mode since 7.

local prefix = ARGV[1]
local CHUNK = 1000 -- values of one call: Lua's C stack holds 8,000
local CLAIM_BYTES = 16 * 1024 * 1024 -- of the jobs in one claim; one larger job still makes a claim

local undo = {}
local knows_queue, earliest, made_ready = {}, {}, {} -- by queue: places jobs / first due time of new delayed ones / ready ones came

local function despite_full_memory()
  redis.call('UNLINK', prefix .. '-')
end

-- The store's clock in seconds since the epoch, moved by tests.
local function now_s(shift_s)
  local time = redis.call('TIME')
  return time[1] + time[2] / 1000000 + shift_s
end

local function refusal(code, text)
  return redis.error_reply(code .. ' ' .. string.gsub(text, '%c', ' '))
end

-- Runs work(); when a call in it fails, takes back its steps and answers with that error.
local function atomically(work)
  local done, answer = pcall(work)
  if done then
    return answer
  end
  for step = #undo, 1, -1 do
    redis.pcall(unpack(undo[step]))
  end
  return refusal('FJ_FAILED', type(answer) == 'table' and answer.err or tostring(answer))
end

-- One write and the call that takes it back.
local function write(call, back)
  redis.call(unpack(call))
  undo[#undo + 1] = back
end

-- From here on nothing is taken back: what was copied stays.
local function commit()
  undo = {}
end

-- Calls work(from, to) for consecutive ranges of 1..count that one redis.call can take.
local function in_chunks(count, work)
  for from = 1, count, CHUNK do
    work(from, math.min(from + CHUNK - 1, count))
  end
end

-- Writes pairs to a hash or zset by `command`; `back` takes the names in them away again, from the first or second of each.
local function write_pairs(command, key, values, back, name_at)
  in_chunks(#values, function(from, to)
    local taken_back = {back, key}
    for position = from + name_at - 1, to, 2 do
      taken_back[#taken_back + 1] = values[position]
    end
    redis.call(command, key, unpack(values, from, to))
    undo[#undo + 1] = taken_back
  end)
end

local function ready_key(queue, priority)
  return prefix .. 'ready:' .. queue .. ':' .. priority
end

-- Appends values[first..last] to a list.
local function append(key, values, first, last)
  for from = first, last, CHUNK do
    local to = math.min(from + CHUNK - 1, last)
    redis.call('RPUSH', key, unpack(values, from, to))
    undo[#undo + 1] = {'LTRIM', key, 0, from - to - 2}
  end
end

-- Puts values before all others of a list, values[1] first.
local function prepend(key, values)
  for to = #values, 1, -CHUNK do
    local from = math.max(to - CHUNK + 1, 1)
    local reversed = {}
    for index = to, from, -1 do
      reversed[#reversed + 1] = values[index]
    end
    redis.call('LPUSH', key, unpack(reversed))
    undo[#undo + 1] = {'LTRIM', key, #reversed, -1}
  end
end

-- Sorts a job to its place; `store_placed` writes it there. run_at may be nil.
local tails, heads, delayed, buried = {}, {}, {}, {}

local function add(lists, key, value)
  local list = lists[key]
  if not list then
    list = {}
    lists[key] = list
  end
  list[#list + 1] = value
end

local function place(queue, priority, id, envelope, run_at, delay_s, now)
  knows_queue[queue] = true
  local due = run_at or now + delay_s
  if due > now then
    local key = prefix .. 'later:' .. queue
    add(delayed, key, due)
    add(delayed, key, priority .. id .. envelope) -- the id: two envelopes may be alike
    earliest[queue] = math.min(due, earliest[queue] or due)
  else
    add(tails, ready_key(queue, priority), envelope)
    made_ready[queue] = true
  end
end

local function place_first(queue, priority, envelope)
  knows_queue[queue] = true
  made_ready[queue] = true
  add(heads, ready_key(queue, priority), envelope)
end

-- A dead letter is stored as "<bytes in the queue's name>:<queue><envelope>".
local function bury(id, queue, envelope)
  knows_queue[queue] = true
  add(buried, 'ids', id)
  add(buried, 'letters', #queue .. ':' .. queue .. envelope)
  add(buried, 'queues', queue)
end

-- Of a letter that is none of ours: ''.
local function queue_of(letter)
  local length = string.match(letter, '^(%d+):')
  return length and string.sub(letter, #length + 2, #length + 1 + tonumber(length)) or ''
end

local function exhume(id, letter)
  local died = prefix .. 'died'
  local died_here = died .. ':' .. queue_of(letter)
  local at = redis.call('ZSCORE', died, id)
  write({'ZREM', died_here, id}, {'ZADD', died_here, at, id})
  write({'ZREM', died, id}, {'ZADD', died, at, id})
  write({'HDEL', prefix .. 'dead', id}, {'HSET', prefix .. 'dead', id, letter})
end

local function store_buried(now)
  local ids, letters = buried.ids or {}, {}
  local times, times_of = {}, {}
  in_chunks(#ids, function(from, to)
    for offset, old in ipairs(redis.call('HMGET', prefix .. 'dead', unpack(ids, from, to))) do
      if old then
        exhume(ids[from + offset - 1], old) -- it ran twice and died twice
      end
    end
  end)
  for position, id in ipairs(ids) do
    letters[#letters + 1] = id
    letters[#letters + 1] = buried.letters[position]
    times[#times + 1] = now
    times[#times + 1] = id
    add(times_of, buried.queues[position], now)
    add(times_of, buried.queues[position], id)
  end
  write_pairs('HSET', prefix .. 'dead', letters, 'HDEL', 1)
  write_pairs('ZADD', prefix .. 'died', times, 'ZREM', 2)
  for queue, values in pairs(times_of) do
    write_pairs('ZADD', prefix .. 'died:' .. queue, values, 'ZREM', 2)
  end
end

local function name_queues()
  for queue in pairs(knows_queue) do
    if redis.call('SADD', prefix .. 'queues', queue) == 1 then
      undo[#undo + 1] = {'SREM', prefix .. 'queues', queue}
    end
  end
end

local function store_placed(now)
  name_queues()
  store_buried(now)
  for key, values in pairs(tails) do
    append(key, values, 1, #values)
  end
  for key, values in pairs(heads) do
    prepend(key, values)
  end
  for key, values in pairs(delayed) do
    write_pairs('ZADD', key, values, 'ZREM', 2)
  end
end

-- Queues whose first delayed job is one just placed: who waits for them has to look at the time again.
local function note_new_heads()
  local heads_of = {}
  for queue, due in pairs(earliest) do
    local head = redis.call('ZRANGE', prefix .. 'later:' .. queue, 0, 0, 'WITHSCORES')
    if not head[2] or due < tonumber(head[2]) then
      heads_of[queue] = true
    end
  end
  return heads_of
end

-- Wakes one waiter of a queue: at most one marker, for whoever comes next. A hint, so its failure fails nothing.
local function wake(key)
  if redis.pcall('EXISTS', key) == 0 then
    redis.pcall('RPUSH', key, 1)
  end
end

local function wake_for(queues)
  for queue in pairs(queues) do
    wake(prefix .. 'wake:' .. queue)
  end
end

-- What stands in a worker's record about the call n: a refusal, or the result if it was the last one, or neither.
local function called_before(record, worker, n)
  local known = redis.call('HMGET', record, 'n', 'result', 'gone', n)
  if not known[1] then
    return refusal('FJ_GONE', 'worker ' .. worker .. ' is unknown to the store; nothing was done')
  end
  if known[3] then
    return refusal('FJ_GONE', 'worker ' .. worker .. ' was given up; nothing was done')
  end
  local last = tonumber(known[1])
  if tonumber(n) == last then
    return nil, known[2]
  end
  if tonumber(n) < last then
    return refusal('FJ_STALE', 'call ' .. n .. ' of worker ' .. worker .. ' came after its call ' .. known[1] .. '; nothing was done')
  end
  if known[4] then
    return refusal('FJ_BAD', 'call ' .. n .. ' of worker ' .. worker .. ' has the number of an open claim')
  end
  return nil, nil, {'HSET', record, 'n', known[1], 'result', known[2] or ''}
end
