-- Part: a task's result is stored as Celery's Redis backend does, and its record advances. Needs record.
-- A success that is already there stands, as in Celery: a copy that was delivered twice doesn't overwrite it. Nor does the
-- end of a task that was cancelled while it ran overwrite what its waiters were told.
-- `begins` is how a stored success begins, `to` the state of the record ('': none), with what else `advance_record` takes.
-- Returns whether the result was stored.
local function store_result(result, encoded, ttl_seconds, begins, record, now, to, ...)
  local past = redis.call('GET', result)
  if past and string.sub(past, 1, #begins) == begins then return false end
  local standing = to ~= '' and advance_record(record, now, to, ...) or {1}
  if standing[1] == 0 and standing[2] == 'cancelled' and to ~= 'cancelled' then return false end
  if tonumber(ttl_seconds) > 0 then
    redis.call('SET', result, encoded, 'EX', ttl_seconds)
  else
    redis.call('SET', result, encoded)
  end
  redis.call('PUBLISH', result, encoded)
  return true
end
