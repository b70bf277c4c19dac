-- Move what waits in a queue to the dead letters, with a reason, and take the queue off the table.
-- It stays there while messages of it are delayed, leased or wait for a breaker, since these come back to it.
-- KEYS: 1 the table of queues, 2 its version, 3 the queue's delayed messages, 4 its leased ones, 5 the numbers of messages
--       that wait for breakers, then its lists (one a priority).
-- ARGV: 1 how our keys begin, 2 the queue's suffix, 3 the queue's name, 4 the reason, 5 the error, 6 messages to move at
--       most. Returns the messages moved.
--#include leases
local moved, left = {}, tonumber(ARGV[6])
for i = 6, #KEYS do
  while left > 0 do
    local raw = redis.call('RPOP', KEYS[i])
    if not raw then break end
    bury(ARGV[1], ARGV[3] .. '\n' .. KEYS[i] .. '\n' .. raw, ARGV[4], ARGV[5])
    moved[#moved + 1] = raw
    left = left - 1
  end
end
local empty = left > 0 and redis.call('ZCARD', KEYS[3]) == 0 and redis.call('ZCARD', KEYS[4]) == 0
empty = empty and redis.call('HEXISTS', KEYS[5], ARGV[3]) == 0
if empty and redis.call('ZREM', KEYS[1], ARGV[2]) == 1 then redis.call('INCR', KEYS[2]) end
return moved
