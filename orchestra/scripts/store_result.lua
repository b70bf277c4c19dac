-- Store a task's result as Celery's Redis backend does, and advance the task's record: one step, one round trip.
-- A success that is already there stands, as in Celery: a copy that was delivered twice doesn't overwrite it.
-- KEYS: 1 the result, 2 the record.
-- ARGV: 1 the encoded result, 2 its ttl in s (0: none), 3 how a stored success begins, then as in advance.lua.
--#include record
local past = redis.call('GET', KEYS[1])
if past and string.sub(past, 1, #ARGV[3]) == ARGV[3] then return 0 end
if tonumber(ARGV[2]) > 0 then
  redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
else
  redis.call('SET', KEYS[1], ARGV[1])
end
redis.call('PUBLISH', KEYS[1], ARGV[1])
if ARGV[4] ~= '' then
  advance_record(KEYS[2], redis_time(), ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10])
end
return 1
