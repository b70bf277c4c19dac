-- Keep an agent's registration alive, and tell it the queues when their table has changed.
-- KEYS: 1 agents by beat, 2 this agent's hash, 3 the table of queues, 4 that table's version.
-- ARGV: 1 name, 2 instance, 3 ttl of the hash in s, 4 the version that the agent knows, then field and value ....
-- Returns {'unknown'} when the registration is gone, {'taken'} when another agent holds the name,
-- else {'ok', version, queue ...} with the queues only when the version differs.
local holder = redis.call('HGET', KEYS[2], 'instance')
if not holder then return {'unknown'} end
if holder ~= ARGV[2] then return {'taken'} end
local t = redis.call('TIME')
redis.call('ZADD', KEYS[1], string.format('%d.%06d', t[1], t[2]), ARGV[1])
if #ARGV > 4 then redis.call('HSET', KEYS[2], unpack(ARGV, 5)) end
redis.call('EXPIRE', KEYS[2], ARGV[3])
local version = redis.call('GET', KEYS[4]) or '0'
if version == ARGV[4] then return {'ok', version} end
local reply = {'ok', version}
for _, queue in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1)) do reply[#reply + 1] = queue end
return reply
