-- Part: what every script that writes a task's record shares.
-- A record is a hash: name, queue, state, attempt, agent, error, submitted, started, finished, history.
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

-- Say why a task is to be tried again, which its agent tells after it has published the retry.
local function explain_retry(key, note)
  local past = redis.call('HGET', key, 'history')
  local parting = string.sub(past, -1) == '\31' and '' or '; '
  redis.call('HSET', key, 'error', note, 'history', past .. parting .. note)
end

local MOMENTS = {
  submitted = 'submitted', running = 'started', succeeded = 'finished', failed = 'finished', cancelled = 'finished',
}

-- Compare and set. Returns 1 and the new state, or 0 and the state that stands.
-- `from` lists the states that may be left, '-' standing for an unknown task; an older attempt changes nothing, and
-- attempt 0 stands for the one that is under way.
local function advance_record(key, now, to, from, agent, attempt, note, ttl_ms, name)
  local got = redis.call('HMGET', key, 'state', 'attempt')
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
  return {1, to}
end
