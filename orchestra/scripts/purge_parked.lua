-- Drop what waits for breakers and would go back to one queue. Returns the number of messages.
-- ARGV: 1 how our keys begin, 2 the queue.
--#include leases
local base, queue, dropped = ARGV[1], ARGV[2], 0
if redis.call('HEXISTS', base .. 'parked', queue) == 0 then return 0 end
for _, name in ipairs(redis.call('ZRANGE', base .. 'breakers', 0, -1)) do
  local key = base .. 'parked:' .. name
  for _, value in ipairs(redis.call('ZRANGE', key, 0, -1)) do
    if lines_of(value) == queue then dropped = dropped + redis.call('ZREM', key, value) end
  end
end
redis.call('HDEL', base .. 'parked', queue)
return dropped
