-- Take a queue off the table if nothing waits in it and nobody has registered it since.
-- KEYS: 1 the table of queues, 2 its version, 3 kombu's unacknowledged messages, then the queue's lists.
-- ARGV: 1 the queue's suffix, 2 the Redis time up to which its registration counts as old. Returns 1 if it was taken off.
local registered = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not registered or tonumber(registered) > tonumber(ARGV[2]) then return 0 end
if redis.call('HLEN', KEYS[3]) > 0 then return 0 end -- one of them may come back to this queue
for i = 4, #KEYS do
  if redis.call('LLEN', KEYS[i]) > 0 then return 0 end
end
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('INCR', KEYS[2])
return 1
