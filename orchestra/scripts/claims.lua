-- Part: what a submission claims: to be the only one with its idempotency key for a time, or the only one with its
-- arguments while it's under way. The value of a key is the payload's digest and the task's id; that of a lock is the
-- id of the task that owns it. A lock holds as long as its owner is under way, whatever its own time to live.
-- A claim is written as: the key ('': none), the payload's digest, for how many ms the key is kept, the lock ('': none),
-- and 'until_started' or 'until_done', parted by the unit separator.
local function claim_in(text)
  if not text or text == '' then return nil end
  local key, digest, key_ms, lock, mode = string.match(text, '^(.-)\31(.-)\31(.-)\31(.-)\31(.*)$')
  return {key = key, digest = digest, key_ms = tonumber(key_ms), lock = lock, mode = mode}
end

-- Whether a task that owns a lock is still under way: not ended, nor started where that is enough, nor lost.
local function is_under_way(base, id, mode)
  local got = redis.call('HMGET', base .. 'task:' .. id, 'state', 'started', 'holder', 'lease')
  local state, started, holder, lease = got[1], got[2], got[3], got[4]
  if not state or MOMENTS[state] == 'finished' or (mode == 'until_started' and started) then return false end
  if state ~= 'running' or not holder then return true end
  if lease == '' then -- it runs at most once: nobody runs it again when its agent dies
    return redis.call('ZSCORE', base .. 'holders', holder) and true
  end
  return redis.call('HEXISTS', base .. 'leases:' .. holder, lease) == 1
    or redis.call('EXISTS', base .. 'moved:' .. holder .. ':' .. lease) == 1
end

-- Who has what is claimed already: {the task's id, 1 if its payload is the same}; nothing where nobody has.
local function standing(base, claimed)
  local value = claimed.key ~= '' and redis.call('GET', claimed.key)
  if value then
    local digest, id = string.match(value, '^(%S+) (.*)$')
    return {id, digest == claimed.digest and 1 or 0}
  end
  local owner = claimed.lock ~= '' and redis.call('GET', claimed.lock)
  if owner and is_under_way(base, owner, claimed.mode) then return {owner, 1} end
end

local function claim(record, id, claimed, wait_ms, lock_ms)
  if claimed.key ~= '' then
    redis.call('SET', claimed.key, claimed.digest .. ' ' .. id, 'PX', string.format('%.0f', claimed.key_ms + wait_ms))
  end
  if claimed.lock ~= '' then
    redis.call('SET', claimed.lock, id, 'PX', lock_ms)
    redis.call('HSET', record, 'unique', claimed.mode .. ' ' .. claimed.lock)
  end
end
