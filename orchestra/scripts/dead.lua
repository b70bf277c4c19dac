-- Part of leases.lua: how a message becomes a dead letter, and what is remembered of its deliveries until then.
-- A letter is a hash of its own, `dead:letter:<id>`: raw (the message's bytes), queue, list, reason, error, task_id,
-- task, requires, attempt, submitted, history (as in a record) and deliveries. `dead:letters` has the ids by time, no
-- two at the same. A letter has its task's id; what is no task's message, and a second message of an id, gets another.
-- `deliveries` has, by a message's digest, what befell it: lines of kind ('process' or 'agent', which was lost with it;
-- 'replay'), time, agent and note.
local function append_line(key, field, words)
  local line = table.concat(words, '\31')
  local past = redis.call('HGET', key, field)
  redis.call('HSET', key, field, past and past ~= '' and (past .. '\30' .. line) or line)
end

local function remember_delivery(base, digest, kind, agent, note)
  append_line(base .. 'deliveries', digest, {kind, stamp(clock()), agent, note})
  redis.call('EXPIRE', base .. 'deliveries', 7 * FOREVER)
end

-- How many processes and agents were lost with a message since it was replayed last, and how often it was.
local function losses_in(deliveries)
  local processes, agents, replays = 0, 0, 0
  for line in string.gmatch(deliveries, '[^\30]+') do
    local kind = string.match(line, '^[^\31]*')
    if kind == 'process' then processes = processes + 1 end
    if kind == 'agent' then agents = agents + 1 end
    if kind == 'replay' then processes, agents, replays = 0, 0, replays + 1 end
  end
  return processes, agents, replays
end

-- Nothing is known any more of a message that is done with.
local function forget_deliveries(base, again, digest)
  redis.call('HDEL', again, digest)
  redis.call('HDEL', base .. 'deliveries', digest)
  redis.call('DEL', base .. 'settled:' .. digest)
end

-- Read a message's headers, for which it's decoded and thrown away; empty for what is no message.
local function headers_of(raw)
  local readable, message = pcall(cjson.decode, raw)
  local headers = readable and type(message) == 'table' and message.headers
  return type(headers) == 'table' and headers or {}
end

local function text_in(value)
  return type(value) == 'string' and value or ''
end

-- A message's task was running when its agent was lost: remembered until that turns out to live, see `forgive`.
local function lose_with_agent(base, holder, digest, raw)
  local task_id = text_in(headers_of(raw).id)
  local agent = task_id ~= '' and redis.call('HGET', base .. 'task:' .. task_id, 'agent')
  remember_delivery(base, digest, 'agent', agent or '', holder)
  redis.call('SADD', base .. 'lost_with:' .. holder, digest)
  redis.call('EXPIRE', base .. 'lost_with:' .. holder, FOREVER)
end

-- A holder that was taken for lost beats again: it was frozen, and no message is to blame.
local function forgive(base, holder)
  local lost, key = base .. 'lost_with:' .. holder, base .. 'deliveries'
  for _, digest in ipairs(redis.call('SMEMBERS', lost)) do
    local kept = {}
    for line in string.gmatch(redis.call('HGET', key, digest) or '', '[^\30]+') do
      local blamed = string.match(line, '^agent\31') and string.sub(line, -#holder - 1) == '\31' .. holder
      if not blamed then kept[#kept + 1] = line end
    end
    if #kept > 0 then redis.call('HSET', key, digest, table.concat(kept, '\30')) else redis.call('HDEL', key, digest) end
  end
  redis.call('DEL', lost)
end

local function drop_letter(base, id, why)
  redis.call('ZREM', base .. 'dead:letters', id)
  redis.call('DEL', base .. 'dead:letter:' .. id)
  redis.call('HINCRBY', base .. 'dead:dropped', why, 1)
  redis.call('HINCRBY', base .. 'dead:dropped', 'untold', 1)
end

-- Drop the oldest letters beyond the bound that the fleet's agents have set, `limit` of them at most.
local function drop_surplus(base, limit)
  local most = tonumber(redis.call('HGET', base .. 'dead:bounds', 'letters') or '') or 100000
  local over = math.min(redis.call('ZCARD', base .. 'dead:letters') - most, limit)
  if over <= 0 then return end
  for _, id in ipairs(redis.call('ZRANGE', base .. 'dead:letters', 0, over - 1)) do drop_letter(base, id, 'surplus') end
end

-- A copy of a message that is a letter already replaces it; another message of the same task's id doesn't.
local function name_letter(base, task_id, raw)
  if #task_id <= 200 and string.find(task_id, '^[%w_.:-]+$') then
    for n = 1, 50 do
      local id = n == 1 and task_id or (task_id .. '.' .. n)
      local there = redis.call('HGET', base .. 'dead:letter:' .. id, 'raw')
      if not there or there == raw then return id end
    end
  end
  return 'message-' .. redis.call('HINCRBY', base .. 'dead:bounds', 'named', 1)
end

-- Make a dead letter of a message in transit; its lease is the caller's to end, in the same step.
local function bury(base, value, reason, error_text)
  local queue, list, raw = lines_of(value)
  local headers, digest = headers_of(raw), redis.sha1hex(value)
  local task_id, retries = text_in(headers.id), headers.retries
  local record = task_id ~= '' and redis.call('HMGET', base .. 'task:' .. task_id, 'submitted', 'history') or {}
  local id = name_letter(base, task_id, raw)
  local last = redis.call('ZRANGE', base .. 'dead:letters', -1, -1, 'WITHSCORES')
  local at = math.max(clock(), (tonumber(last[2] or '') or 0) + 2e-6) -- so that lists can go on behind a time
  redis.call('HSET', base .. 'dead:letter:' .. id, 'raw', raw, 'queue', queue, 'list', list, 'reason', reason,
    'error', error_text, 'task_id', task_id, 'task', text_in(headers.task), 'requires', text_in(headers.requires),
    'attempt', type(retries) == 'number' and string.format('%d', retries + 1) or '1', 'submitted', record[1] or '',
    'history', record[2] or '', 'deliveries', redis.call('HGET', base .. 'deliveries', digest) or '')
  redis.call('ZADD', base .. 'dead:letters', stamp(at), id)
  forget_deliveries(base, base .. 'redelivered', digest)
  drop_surplus(base, 10)
end
