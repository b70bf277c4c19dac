-- Take an agent that stopped off the list, unless another one has taken its name since.
-- KEYS: 1 agents by beat, 2 this agent's hash. ARGV: 1 name, 2 instance.
if redis.call('HGET', KEYS[2], 'instance') ~= ARGV[2] then return 0 end
redis.call('DEL', KEYS[2])
return redis.call('ZREM', KEYS[1], ARGV[1])
