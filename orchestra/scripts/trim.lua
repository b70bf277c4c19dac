-- Drop dead letters that are too old or too many, and have the bound stand where letters are made.
-- KEYS: 1 the letters by time, 2 their bounds, 3 how many were dropped.
-- ARGV: 1 how our keys begin, 2 letters to keep at most, 3 s for which one is kept, 4 letters to drop at most.
-- Returns how many were dropped, here or where letters are made, since this was asked last.
--#include leases
redis.call('HSET', KEYS[2], 'letters', ARGV[2])
local before = stamp(clock() - tonumber(ARGV[3]))
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', before, 'LIMIT', 0, ARGV[4])) do
  drop_letter(ARGV[1], id, 'age')
end
drop_surplus(ARGV[1], tonumber(ARGV[4]))
local untold = redis.call('HGET', KEYS[3], 'untold') or '0'
redis.call('HDEL', KEYS[3], 'untold')
return tonumber(untold)
