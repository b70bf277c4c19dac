-- Part: what every script that writes a task's record shares.
-- A record is a hash: name, queue, state, attempt, agent, error, submitted, started, finished, history, published,
-- due (of a delayed task, in s since 1970), unique (until when, and the lock that it owns), holder and lease (of a unique
-- task that runs; an empty lease is one that was given up at the start).
-- A line of `history` is: state, time, agent, attempt, note, parted by the unit separator.
local function redis_time()
  local t = redis.call('TIME')
  return string.format('%d.%06d', t[1], t[2])
end

local function note_down(key, now, state, agent, attempt, note)
  local line = table.concat({state, now, agent, attempt, note}, '\31')
  local past = redis.call('HGET', key, 'history')
  redis.call('HSET', key, 'history', past and (past .. '\30' .. line) or line)
end

-- Write a task down as submitted. A record that is still open (a retry, a repeated publish) keeps its past.
local function open_record(key, now, name, queue, attempt, ttl_ms, note)
  local state = redis.call('HGET', key, 'state')
  local open = state == 'submitted' or state == 'running' or state == 'retrying'
  local next_state = (open and tonumber(attempt) > 1) and 'retrying' or 'submitted'
  if not open then
    redis.call('DEL', key)
    redis.call('HSET', key, 'submitted', now)
  end
  redis.call('HSET', key, 'name', name, 'queue', queue, 'state', next_state, 'attempt', attempt)
  note_down(key, now, next_state, '', attempt, note)
  redis.call('PEXPIRE', key, ttl_ms)
end

-- A publish that is attempted again after a lost reply carries the id that it had: the last few are remembered, since
-- a retry of the task may come in between.
local function publishes_of(key)
  return redis.call('HGET', key, 'published') or ''
end

local function remember_publish(key, past, id)
  local ids = {id}
  for one in string.gmatch(past, '%S+') do
    if #ids < 3 then ids[#ids + 1] = one end
  end
  redis.call('HSET', key, 'published', table.concat(ids, ' '))
end

-- Note that an open task waits again, for something else than an agent; not anew where that is the last that was noted.
local function note_wait(key, now, attempt, note, ttl_ms)
  local got = redis.call('HMGET', key, 'state', 'history')
  if got[1] ~= 'submitted' and got[1] ~= 'running' and got[1] ~= 'retrying' then return end
  redis.call('PEXPIRE', key, ttl_ms)
  local ending = '\31' .. note
  if string.sub(got[2] or '', -#ending) == ending then return end
  local state = tonumber(attempt) > 1 and 'retrying' or 'submitted'
  redis.call('HSET', key, 'state', state)
  note_down(key, now, state, '', attempt, note)
end

-- Say why a task is to be tried again, which its agent tells after it has published the retry.
local function explain_retry(key, note)
  local past = redis.call('HGET', key, 'history')
  local parting = string.sub(past, -1) == '\31' and '' or '; '
  redis.call('HSET', key, 'error', note, 'history', past .. parting .. note)
end

local MOMENTS = {
  submitted = 'submitted', running = 'started', succeeded = 'finished', failed = 'finished', cancelled = 'finished',
  expired = 'finished',
}

-- A unique task's lock goes with the end of its task, or its start where that is enough; else it's kept as long as the
-- record is. `unique` is the record's field. An owner frees its own lock only.
local function follow_lock(key, unique, to, ttl_ms)
  if not unique then return end
  local mode, lock = string.match(unique, '^(%S+) (.*)$')
  local owner = redis.call('GET', lock)
  if not owner or string.sub(key, -#owner - 6) ~= ':task:' .. owner then return end
  if MOMENTS[to] == 'finished' or (mode == 'until_started' and to == 'running') then
    redis.call('DEL', lock)
  else
    redis.call('PEXPIRE', lock, ttl_ms)
  end
end

-- Compare and set. Returns {1, the new state}, or {0, the state that stands}, and the record's field `unique`.
-- `from` lists the states that may be left, '-' standing for an unknown task; an older attempt changes nothing, and
-- attempt 0 stands for the one that is under way.
local function advance_record(key, now, to, from, agent, attempt, note, ttl_ms, name)
  local got = redis.call('HMGET', key, 'state', 'attempt', 'unique')
  local state = got[1] or '-'
  if not string.find(from, ' ' .. state .. ' ', 1, true) then return {0, state} end
  if tonumber(attempt) == 0 then attempt = got[2] or 1 end
  if got[2] and tonumber(attempt) < tonumber(got[2]) then
    if to == 'retrying' and state == 'retrying' and attempt + 1 == tonumber(got[2]) then explain_retry(key, note) end
    return {0, state}
  end
  redis.call('HSET', key, 'state', to, 'attempt', attempt)
  if name ~= '' and not got[1] then redis.call('HSET', key, 'name', name) end
  if agent ~= '' then redis.call('HSET', key, 'agent', agent) end
  if MOMENTS[to] then redis.call('HSET', key, MOMENTS[to], now) end
  if to == 'failed' or to == 'retrying' then
    redis.call('HSET', key, 'error', note)
  else
    redis.call('HDEL', key, 'error')
  end
  note_down(key, now, to, agent, attempt, note)
  redis.call('PEXPIRE', key, ttl_ms)
  follow_lock(key, got[3], to, ttl_ms)
  return {1, to}, got[3]
end
