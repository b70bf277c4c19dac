-- Part: how an agent that waits for a queue learns that something came.
-- Wake one idle agent of a queue. One token is enough: whoever takes it and leaves messages behind renews it.
local function wake(base, queue)
  local key = base .. 'wake:' .. queue
  if redis.call('LLEN', key) == 0 then
    redis.call('RPUSH', key, '1')
    redis.call('EXPIRE', key, 60)
  end
end
