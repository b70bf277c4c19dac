-- Write an agent down, with the catalogue of the tasks that it knows and the queues that these ask for.
-- A name that another live agent holds is refused.
-- KEYS: 1 agents by beat, 2 this agent's hash, 3 the catalogue, 4 the table of queues, 5 that table's version,
--       6 agents that left, by the time when they did.
-- ARGV: 1 name, 2 instance, 3 seconds after which a silent agent counts as lost, 4 ttl of the hash in s,
--       5 number of fields, then field and value ..., number of tasks, then task and entry ..., then queue suffixes.
local t = redis.call('TIME')
local now = tonumber(t[1]) + tonumber(t[2]) / 1e6
local stamp = string.format('%d.%06d', t[1], t[2])
local holder = redis.call('HGET', KEYS[2], 'instance')
local beat = redis.call('ZSCORE', KEYS[1], ARGV[1])
if holder and holder ~= ARGV[2] and beat and now - tonumber(beat) <= tonumber(ARGV[3]) then
  return {0, redis.call('HGET', KEYS[2], 'about') or '', tostring(now - tonumber(beat))}
end
local at = 6
local last = 5 + 2 * tonumber(ARGV[5])
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[2], 'instance', ARGV[2], 'started', stamp, unpack(ARGV, at, last))
redis.call('EXPIRE', KEYS[2], ARGV[4])
redis.call('ZADD', KEYS[1], stamp, ARGV[1])
redis.call('ZREM', KEYS[6], ARGV[1])
for _, list in ipairs({KEYS[1], KEYS[6]}) do
  redis.call('ZREMRANGEBYSCORE', list, '-inf', now - tonumber(ARGV[4])) -- agents whose hash has expired
end
at = last + 2
last = last + 1 + 2 * tonumber(ARGV[last + 1])
for i = at, last, 2 do redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 1]) end
local added = 0
for i = last + 1, #ARGV do added = added + redis.call('ZADD', KEYS[4], stamp, ARGV[i]) end
if added > 0 then redis.call('INCR', KEYS[5]) end
return {1, redis.call('GET', KEYS[5]) or '0', ''}
