-- Take a queue off the table if nothing of it waits anywhere or is leased, and nobody has registered it since.
-- KEYS: 1 the table of queues, 2 its version, 3 what stock workers of any queue hold, 4 the queue's delayed messages,
--       5 its leased ones, 6 the numbers of messages that wait for breakers, then its lists (one a priority).
-- ARGV: 1 the queue's suffix, 2 the Redis time up to which its registration counts as old, 3 the queue's name. Returns 1 if
--       it was taken off.
local registered = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not registered or tonumber(registered) > tonumber(ARGV[2]) then return 0 end
if redis.call('HLEN', KEYS[3]) > 0 then return 0 end -- one of them may come back to this queue
if redis.call('ZCARD', KEYS[4]) > 0 or redis.call('ZCARD', KEYS[5]) > 0 then return 0 end
if redis.call('HEXISTS', KEYS[6], ARGV[3]) == 1 then return 0 end
for i = 7, #KEYS do
  if redis.call('LLEN', KEYS[i]) > 0 then return 0 end
end
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('INCR', KEYS[2])
return 1
