-- adopt.lua  Leases the jobs of another worker's claims to the worker `into`, under its call's number.
-- KEYS worker:<into>, worker:<worker>  hashes, see exchange.lua
--      lease:<lease>  set of the workers of the other worker's lease
--      leases         hash: lease to counter
--      and under the prefix: claim:<id>:<n>  list of the envelopes of one claim
-- ARGV prefix, into, n, worker, its lease, limit, claims: MessagePack list of numbers, or nil for all of a worker given up
-- Returns {"|<more>|", envelopes}. FJ_GONE, FJ_STALE, FJ_BAD: nothing was done.
-- Repeat: the same n gets the stored result and the envelopes of its claim, and changes nothing.
-- Cost: O(jobs adopted); O(1) for a single claim but for reading it.

local record, dead_record = KEYS[1], KEYS[2]
local into, n, worker, lease, limit = ARGV[2], ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])
local listed = cmsgpack.unpack(ARGV[7])
local target = prefix .. 'claim:' .. into .. ':' .. n
local claim_key = prefix .. 'claim:' .. worker .. ':'

local refused, result, forget = called_before(record, into, n)
if refused then
  return refused
end
if result then
  return {result, redis.call('LRANGE', target, 0, -1)}
end
if not listed and into == worker then
  return refusal('FJ_BAD', 'worker ' .. into .. ' cannot give itself up')
end

local fields = redis.call('HKEYS', dead_record)
local wanted, listed_set = {}, nil
if listed then
  listed_set = {}
  for _, claim in ipairs(listed) do
    listed_set[claim] = true
  end
end
local claims = 0
for _, field in ipairs(fields) do
  local claim = tonumber(field)
  if claim then
    claims = claims + 1
    if not listed_set or listed_set[claim] then
      wanted[#wanted + 1] = claim
    end
  end
end
table.sort(wanted)

local jobs, size, more = {}, 0, 0
local taken, taken_fields = {}, {}
for _, claim in ipairs(wanted) do
  local field = string.format('%.0f', claim)
  local key = claim_key .. field
  if #jobs > 0 and #jobs + redis.call('LLEN', key) > limit then
    more = 1
    break
  end
  local batch = redis.call('LRANGE', key, 0, -1)
  for _, envelope in ipairs(batch) do
    size = size + #envelope
  end
  if #jobs > 0 and size > CLAIM_BYTES then
    more = 1
    break
  end
  for position = 1, #batch do
    jobs[#jobs + 1] = batch[position]
  end
  taken[#taken + 1] = key
  taken_fields[#taken_fields + 1] = field
end

-- Also for a worker without a record: should one of these calls fail, the next adoption finishes the work.
local function forget_worker()
  redis.call('UNLINK', dead_record)
  redis.call('SREM', KEYS[3], worker)
  if redis.call('EXISTS', KEYS[3]) == 0 then
    redis.call('HDEL', KEYS[4], lease)
  end
end

return atomically(function()
  despite_full_memory()
  local is_gone = redis.call('HEXISTS', dead_record, 'gone') == 1
  if not listed and not is_gone and #fields > 0 then
    write({'HSET', dead_record, 'gone', 1}, {'HDEL', dead_record, 'gone'})
    is_gone = true
  end
  local answer = '|' .. more .. '|'
  undo[#undo + 1] = forget
  if #jobs > 0 then
    write({'HSET', record, 'n', n, 'result', answer, n, ''}, {'HDEL', record, n})
  else
    redis.call('HSET', record, 'n', n, 'result', answer)
  end
  if #taken == 1 and #jobs > 0 then
    redis.call('RENAME', taken[1], target)
    commit()
  elseif #taken > 0 then
    append(target, jobs, 1, #jobs)
    in_chunks(#taken, function(from, to)
      redis.call('UNLINK', unpack(taken, from, to))
      commit()
    end)
  end
  in_chunks(#taken_fields, function(from, to)
    redis.call('HDEL', dead_record, unpack(taken_fields, from, to))
  end)
  if claims == #taken_fields and (is_gone or not listed) then
    forget_worker()
  end
  return {answer, jobs}
end)
