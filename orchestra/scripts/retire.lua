-- Take an agent that stopped off the list, unless another one has taken its name since; what it said of itself is kept.
-- KEYS: 1 agents by beat, 2 this agent's hash, 3 agents that left, by the time when they did.
-- ARGV: 1 name, 2 instance, 3 ttl of the hash in s.
if redis.call('HGET', KEYS[2], 'instance') ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[2], 'instance') -- the name is free
redis.call('EXPIRE', KEYS[2], ARGV[3])
local t = redis.call('TIME')
redis.call('ZADD', KEYS[3], string.format('%d.%06d', t[1], t[2]), ARGV[1])
return redis.call('ZREM', KEYS[1], ARGV[1])
